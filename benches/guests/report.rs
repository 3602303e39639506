//! The figures as a page: a table for each, with its plot beside it. Decides how numbers are written, and nothing else.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::arms::OURS_AGAIN;
use super::figure::{Case, Figure, Ratio, Samples};
use super::plot;

/// Writes `performance.md` and a plot for each figure. Gives the page.
pub fn write(figures: &[Figure], out: &Path) -> String {
    fs::create_dir_all(out).unwrap();
    let mut page = String::new();
    for figure in figures {
        let plot = format!("{}.svg", figure.name);
        plot::draw(figure, &out.join(&plot));
        writeln!(page, "### {}\n\n{}\n\n![{}]({plot})\n", figure.title, figure.note, figure.title).unwrap();
        table(&mut page, figure);
        page.push('\n');
    }
    fs::write(out.join("performance.md"), &page).unwrap();
    page
}

fn table(page: &mut String, figure: &Figure) {
    let arms: Vec<&str> = figure.cases[0].arms.iter().map(|samples| samples.arm).collect();
    let mut head = vec![figure.axis.to_owned()];
    head.extend(arms.iter().map(|arm| format!("{arm}, {}", figure.unit)));
    let others: Vec<&str> =
        arms.iter().copied().filter(|arm| *arm != figure.ours && Some(*arm) != figure.floor).collect();
    head.extend(others.iter().map(|arm| format!("{arm} / {}", figure.ours)));
    if figure.floor.is_some() {
        let peers = others.iter().filter(|arm| **arm != OURS_AGAIN);
        head.extend(peers.map(|arm| format!("the same above the floor, {arm}")));
    }
    row(page, &head);
    row(page, &vec!["---".to_owned(); head.len()]);
    for case in &figure.cases {
        let mut cells = vec![format!("{}", case.at)];
        cells.extend(case.arms.iter().map(Samples::median).map(|median| format!("{median:.1}")));
        cells.extend(others.iter().map(|arm| told(case.ratio(arm, figure.ours))));
        if figure.floor.is_some() {
            cells.extend(above(case, figure, &others));
        }
        row(page, &cells);
    }
}

fn above(case: &Case, figure: &Figure, others: &[&str]) -> Vec<String> {
    let peers = others.iter().filter(|arm| **arm != OURS_AGAIN);
    peers.map(|arm| told(case.ratio_above(arm, figure.ours, figure.floor))).collect()
}

fn told(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(String::new, |ratio| {
        format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high)
    })
}

fn row(page: &mut String, cells: &[String]) {
    writeln!(page, "| {} |", cells.join(" | ")).unwrap();
}
