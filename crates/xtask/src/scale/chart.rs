//! The chart: accuracy, and claims for each admitted request, against the number of workers.
//!
//! One for light pages and one for dark ones, as SVG, so that text stays text.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use sentinel_sim::steady::Steady;

use super::{Run, THRESHOLDS};

/// Colours of a page.
struct Theme {
    name: &'static str,
    paper: RGBColor,
    ink: RGBColor,
    faint: RGBColor,
    lines: [RGBColor; THRESHOLDS.len()],
}

/// From small thresholds to large ones, told apart also by those who see few colours: light to dark, or dark to light.
const THEMES: [Theme; 2] = [
    Theme {
        name: "light",
        paper: RGBColor(255, 255, 255),
        ink: RGBColor(31, 35, 40),
        faint: RGBColor(216, 222, 228),
        lines: [
            RGBColor(230, 159, 0),
            RGBColor(213, 94, 0),
            RGBColor(204, 80, 140),
            RGBColor(0, 158, 115),
            RGBColor(0, 114, 178),
            RGBColor(60, 40, 110),
        ],
    },
    Theme {
        name: "dark",
        paper: RGBColor(13, 17, 23),
        ink: RGBColor(230, 237, 243),
        faint: RGBColor(61, 68, 77),
        lines: [
            RGBColor(240, 200, 80),
            RGBColor(245, 140, 60),
            RGBColor(240, 130, 180),
            RGBColor(60, 205, 160),
            RGBColor(90, 175, 240),
            RGBColor(190, 170, 255),
        ],
    },
];

const SIZE: (u32, u32) = (960, 420);
const FONT: &str = "sans-serif";

/// The ends of the axis of workers: a little outside of 1 and 64.
const LEFT: f64 = 0.9;
const RIGHT: f64 = 71.0;

/// Each theme's name, and its picture.
pub(super) fn charts(runs: &[Run]) -> Result<Vec<(&'static str, String)>> {
    THEMES
        .iter()
        .map(|theme| {
            let mut svg = String::new();
            draw(theme, runs, &mut svg)
                .map_err(|error| anyhow!("cannot draw the chart: {error}"))?;
            Ok((theme.name, svg))
        })
        .collect()
}

type Drawn = Result<(), Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(theme: &Theme, runs: &[Run], svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&theme.paper)?;
    let (left, right) = root.split_horizontally(SIZE.0 * 45 / 100);
    accuracy(theme, runs, &left)?;
    claims(theme, runs, &right)?;
    root.present()?;
    Ok(())
}

/// The least and the most that a window admitted, in percent of the threshold.
fn accuracy(theme: &Theme, runs: &[Run], area: &Area<'_>) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(
            "least admitted in a window, % of the threshold (colours as on the right)",
            (FONT, 14, &theme.ink),
        )
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d((LEFT..RIGHT).log_scale().base(2.0), 98.8..100.2)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("workers")
        .x_label_formatter(&|workers| format!("{workers:.0}"))
        .y_labels(7)
        .y_label_formatter(&|percent| format!("{percent:.1}"))
        .label_style((FONT, 13, &theme.ink))
        .axis_style(theme.ink)
        .bold_line_style(theme.faint)
        .light_line_style(theme.paper)
        .draw()?;
    // What is promised.
    for bound in [99.0, 100.0] {
        let line = [(LEFT, bound), (RIGHT, bound)];
        chart.draw_series(LineSeries::new(line, theme.ink.stroke_width(1)))?;
    }
    for (threshold, colour) in THRESHOLDS.into_iter().zip(theme.lines) {
        let points: Vec<_> = of(runs, threshold)
            .map(|(plan, outcome)| {
                let least = outcome.windows.iter().min().copied().unwrap_or_default();
                (workers_of(plan), percent(least, threshold))
            })
            .collect();
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    Ok(())
}

/// Claims for each admitted request.
fn claims(theme: &Theme, runs: &[Run], area: &Area<'_>) -> Drawn {
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(120)
        .caption("claims for each admitted request", (FONT, 14, &theme.ink))
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d((LEFT..RIGHT).log_scale().base(2.0), (0.000_03..4.0).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("workers")
        .x_label_formatter(&|workers| format!("{workers:.0}"))
        .y_label_formatter(&|claims| claims.to_string())
        .label_style((FONT, 13, &theme.ink))
        .axis_style(theme.ink)
        .bold_line_style(theme.faint)
        .light_line_style(theme.paper)
        .draw()?;
    for (threshold, colour) in THRESHOLDS.into_iter().zip(theme.lines) {
        let points: Vec<_> = of(runs, threshold)
            .map(|(plan, outcome)| (workers_of(plan), outcome.per_request(outcome.claims)))
            .collect();
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        // Beside its line rather than in a box of its own: nothing to match by colour.
        let name = format!("{} a second", thousands(threshold));
        // The first two come close at 64 workers.
        let above = if THRESHOLDS.first() == Some(&threshold) { -14 } else { -6 };
        let label = |at| {
            EmptyElement::at(at)
                + Text::new(name.clone(), (9, above), (FONT, 13).into_font().color(&colour))
        };
        chart.draw_series(points.last().copied().map(label))?;
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    Ok(())
}

fn of(runs: &[Run], threshold: u32) -> impl Iterator<Item = &Run> {
    runs.iter().filter(move |(plan, _)| plan.threshold == threshold)
}

#[expect(clippy::cast_precision_loss, reason = "workers are few")]
fn workers_of(plan: &Steady) -> f64 {
    plan.workers as f64
}

#[expect(clippy::cast_precision_loss, reason = "admitted in a second")]
fn percent(admitted: u64, threshold: u32) -> f64 {
    admitted as f64 * 100.0 / f64::from(threshold)
}

fn thousands(number: u32) -> String {
    match number {
        number if number >= 1_000_000 => {
            format!("{},{:03},{:03}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
        }
        number if number >= 1_000 => format!("{},{:03}", number / 1_000, number % 1_000),
        number => number.to_string(),
    }
}
