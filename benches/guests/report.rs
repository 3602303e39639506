//! The figures as a page: a table for each, with its plot beside it. Decides how numbers are written, and nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::arms::OURS_AGAIN;
use super::figure::{Figure, Ratio, Samples};
use super::plot;

/// Where the plots are, beside the page.
const PLOTS: &str = "performance";

/// Writes `performance.md` and a plot for each figure. Gives the page.
pub fn write(figures: &[Figure], out: &Path) -> String {
    fs::create_dir_all(out.join(PLOTS)).unwrap();
    let mut page = String::new();
    for figure in figures {
        let plot = format!("{PLOTS}/{}.svg", figure.name);
        plot::draw(figure, &out.join(&plot));
        writeln!(page, "### {}\n\n{}\n\n![{}]({plot})\n", figure.title, figure.note, figure.title).unwrap();
        table(&mut page, figure);
        page.push('\n');
    }
    fs::write(out.join("performance.md"), &page).unwrap();
    page
}

fn table(page: &mut String, figure: &Figure) {
    let pairs = pairs(figure);
    let mut head = vec![figure.axis.to_owned()];
    head.extend(figure.cases[0].arms.iter().map(|samples| format!("{}, {}", samples.arm, figure.unit)));
    head.extend(pairs.iter().map(|(arm, against)| format!("{arm} / {against}")));
    if figure.floor.is_some() {
        head.extend(peers(&pairs).map(|(arm, _)| format!("the same above the floor, {arm}")));
    }
    row(page, &head);
    row(page, &vec!["---".to_owned(); head.len()]);
    for case in &figure.cases {
        let mut cells = vec![format!("{}", case.at)];
        cells.extend(case.arms.iter().map(Samples::median).map(number));
        cells.extend(pairs.iter().map(|(arm, against)| told(case.ratio(arm, against))));
        if figure.floor.is_some() {
            let above = |(arm, against): &Pair| told(case.ratio_above(arm, against, figure.floor));
            cells.extend(peers(&pairs).map(above));
        }
        row(page, &cells);
    }
}

/// An arm, and the one that it is held against.
type Pair = (&'static str, &'static str);

fn pairs(figure: &Figure) -> Vec<Pair> {
    let arms = figure.cases[0].arms.iter().map(|samples| samples.arm);
    let others = arms.filter(|arm| Some(*arm) != figure.against && Some(*arm) != figure.floor);
    others.filter_map(|arm| Some((arm, figure.against?))).collect()
}

/// What the second run of our own is above a floor says nothing more.
fn peers(pairs: &[Pair]) -> impl Iterator<Item = &Pair> {
    pairs.iter().filter(|(arm, _)| *arm != OURS_AGAIN)
}

/// Of small ones a digit more counts.
fn number(value: f64) -> String {
    if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

fn told(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(String::new, |ratio| {
        format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high)
    })
}

fn row(page: &mut String, cells: &[String]) {
    writeln!(page, "| {} |", cells.join(" | ")).unwrap();
}
