// SPDX-License-Identifier: MIT OR Apache-2.0
//! How do the figures look? Line plots as SVG, for docs/measurements.

use kuva::prelude::*;

/// One line of a plot.
pub struct Series {
    /// What the line is.
    pub name: &'static str,
    /// x and y of its points.
    pub points: Vec<(f64, f64)>,
}

/// Whether an axis counts or multiplies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps add.
    Linear,
    /// Equal steps multiply.
    Logarithmic,
}

/// Lines over one x axis, as the text of an SVG file.
pub fn lines(title: &str, x: (&str, Scale), y: (&str, Scale), series: &[Series]) -> String {
    const COLORS: [&str; 4] = ["steelblue", "crimson", "seagreen", "darkorange"];
    let plots: Vec<Plot> = series
        .iter()
        .zip(COLORS.into_iter().cycle())
        .map(|(series, color)| {
            LinePlot::new()
                .with_data(series.points.iter().copied())
                .with_color(color)
                .with_stroke_width(2.0)
                .with_legend(series.name)
                .into()
        })
        .collect();
    let mut layout = Layout::auto_from_plots(&plots)
        .with_title(title)
        .with_x_label(x.0)
        .with_y_label(y.0);
    if x.1 == Scale::Logarithmic {
        layout = layout.with_log_x();
    }
    if y.1 == Scale::Logarithmic {
        layout = layout.with_log_y();
    }
    render_to_svg(plots, layout)
}
