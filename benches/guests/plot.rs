//! A figure as a picture: an arm is a line, what it came to is told by a point for each case. Both axes grow by factors.

use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use super::figure::Figure;

const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(0, 0, 0),
];

pub fn draw(figure: &Figure, file: &Path) {
    let root = SVGBackend::new(file, (720, 420)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    // One that starts at none has its first place at the left edge.
    let at = |case: f64| case.max(0.5);
    let places = figure.cases.iter().map(|case| at(case.at));
    let (left, right) = bounds(places);
    let medians = figure.cases.iter().flat_map(|case| case.arms.iter().map(super::figure::Samples::median));
    let (bottom, top) = bounds(medians.filter(|value| *value > 0.0));
    let mut chart = ChartBuilder::on(&root)
        .caption(figure.title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(
            axis(left / 1.2, right * 1.2).log_scale(),
            axis(bottom / 1.5, top * 1.5).log_scale(),
        )
        .unwrap();
    chart.configure_mesh().x_desc(figure.axis).y_desc(figure.unit).light_line_style(WHITE).draw().unwrap();
    for (number, arm) in figure.cases[0].arms.iter().map(|samples| samples.arm).enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let points: Vec<(f64, f64)> = figure
            .cases
            .iter()
            .filter_map(|case| Some((at(case.at), case.arm(arm)?.median().max(bottom))))
            .collect();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))
            .unwrap()
            .label(arm)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled()))).unwrap();
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.2))
        .draw()
        .unwrap();
    root.present().unwrap();
}

/// From the least to the greatest. Where there is none an axis has a place all the same.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = values.map(|value| (value, value));
    ends.reduce(|(low, high), (value, _)| (low.min(value), high.max(value))).unwrap_or((1.0, 1.0))
}

/// Made longer until a power of ten lies on it: without one no place on it is told.
fn axis(from: f64, to: f64) -> Range<f64> {
    let (below, above) = (10_f64.powf(from.log10().floor()), 10_f64.powf(to.log10().ceil()));
    let has_one = below * 10.0 <= to;
    if has_one {
        from..to
    } else if from / below < above / to {
        below..to
    } else {
        from..above
    }
}
