//! A plot of records per second.

use plotters::prelude::*;

use crate::Outcome;

const SIZE: (u32, u32) = (960, 400);
/// Seconds that are drawn as points too.
const FEW: usize = 120;

/// As an SVG; a point for each second of a run, and what all workers did in it.
pub(crate) fn plot(seconds: &[i64]) -> Outcome<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let most = seconds.iter().copied().max().unwrap_or_default().max(1);
    let mut chart = ChartBuilder::on(&area)
        .caption("Records aggregated per second", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0..seconds.len().max(1), 0..most + most / 10)?;
    chart.configure_mesh().x_desc("seconds").y_desc("records").draw()?;
    // Of a line alone one second shows nothing.
    let size = if seconds.len() <= FEW { 3 } else { 0 };
    chart.draw_series(LineSeries::new(seconds.iter().copied().enumerate(), BLUE.stroke_width(2)).point_size(size))?;
    area.present()?;
    drop(chart);
    drop(area);
    Ok(svg)
}
