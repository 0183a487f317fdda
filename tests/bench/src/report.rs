// SPDX-License-Identifier: MIT OR Apache-2.0
//! What came out? Tables for people, and whether everything was within its budget.

use crate::cases::CASES;
use crate::count;
use crate::memory;
use crate::plot::{Scale, Series, lines};
use crate::scaling::{GROWTH, throughput};
use std::fmt::Write as _;
use std::path::Path;

/// A figure and what it may be.
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    budget: f64,
}

/// The cost of something at several numbers.
struct Curve {
    name: &'static str,
    points: Vec<(u64, &'static str, u64)>,
    within: bool,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    figures: Vec<Figure>,
    curves: Vec<Curve>,
    /// Faults per second of wall time, by vCPUs.
    throughput: Vec<(u64, f64)>,
}

/// Measures what has a budget.
///
/// # Errors
/// The text to print when something could not be measured.
pub fn budgets() -> Result<Report, String> {
    count::available()?;
    let mut report = Report::default();
    for case in CASES.iter().chain(crate::shadow::CASES) {
        let total = count::instructions(&["--case".to_owned(), case.name.to_owned()])?;
        report.figures.push(Figure {
            name: case.name.to_owned(),
            value: (total as f64 / case.count as f64).round(),
            unit: "instructions",
            budget: case.budget as f64,
        });
    }
    report.figures.push(Figure {
        name: "metadata per mapped 4K page, EPT mode".to_owned(),
        value: (memory::ept_bytes_per_page() * 10.0).round() / 10.0,
        unit: "bytes",
        budget: 24.0,
    });
    Ok(report)
}

/// Measures everything, and writes `core.md` and the plots into `folder`.
///
/// # Errors
/// As [`budgets`], or a file could not be written.
pub fn write(folder: &Path) -> Result<Report, String> {
    let mut report = budgets()?;
    report.grow()?;
    let files = [
        ("core-memory.svg", report.memory_plot()),
        ("core-vcpus.svg", report.vcpu_plot()),
        ("core.txt", report.text()),
    ];
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(report)
}

impl Report {
    /// Adds how costs grow.
    ///
    /// # Errors
    /// As [`budgets`].
    pub fn grow(&mut self) -> Result<(), String> {
        for growth in GROWTH {
            let mut points = Vec::new();
            for &(at, text) in growth.at {
                let total = count::instructions(&["--growth".to_owned(), growth.name.to_owned(), at.to_string()])?;
                points.push((at, text, total / growth.count));
            }
            let (first, last) = (points[0].2, points[points.len() - 1].2);
            self.curves.push(Curve {
                name: growth.name,
                within: last <= first + growth.slack,
                points,
            });
        }
        // The best of three: others use the machine too.
        self.throughput = [1, 2, 4, 8]
            .map(|vcpus| (vcpus, (0..3).map(|_| throughput(vcpus)).fold(0.0, f64::max)))
            .to_vec();
        Ok(())
    }

    /// Whether every budget was kept.
    pub fn within(&self) -> bool {
        self.figures.iter().all(|figure| figure.value <= figure.budget) && self.curves.iter().all(|curve| curve.within)
    }

    /// The figures as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for Figure {
            name,
            value,
            unit,
            budget,
        } in &self.figures
        {
            let verdict = if value <= budget { "" } else { "  ABOVE" };
            let _ = writeln!(out, "{name:50} {value:7} {unit:12} (budget {budget}){verdict}");
        }
        for Curve { name, points, within } in &self.curves {
            let verdict = if *within { "" } else { "  GROWS" };
            let _ = writeln!(out, "\n{name}, instructions{verdict}");
            for (_, at, cost) in points {
                let _ = writeln!(out, "  {at:>10} {cost:8}");
            }
        }
        if !self.throughput.is_empty() {
            let processors = std::thread::available_parallelism().map_or(1, usize::from);
            let _ = writeln!(
                out,
                "\nEPT faults per second, a thread for each vCPU, {processors} processors"
            );
            for (vcpus, rate) in &self.throughput {
                let _ = writeln!(out, "  {vcpus:>10} {:8.1}M", rate / 1e6);
            }
        }
        out
    }

    fn series(&self, name: &'static str) -> Series {
        let curve = self
            .curves
            .iter()
            .find(|curve| curve.name == name)
            .expect("a curve of this name");
        Series {
            name,
            points: curve
                .points
                .iter()
                .map(|(at, _, cost)| (*at as f64, *cost as f64))
                .collect(),
        }
    }

    fn memory_plot(&self) -> String {
        let series = [0, 1, 2].map(|i| self.series(GROWTH[i].name));
        let pages_to_mib = series.map(|series| Series {
            points: series
                .points
                .iter()
                .map(|(pages, cost)| (pages / 256.0, *cost))
                .collect(),
            ..series
        });
        lines(
            "Cost beside mapped memory",
            ("mapped memory, MiB", Scale::Logarithmic),
            ("instructions", Scale::Linear),
            &pages_to_mib,
        )
    }

    fn vcpu_plot(&self) -> String {
        lines(
            "Cost of an EPT fault with more vCPUs",
            ("vCPUs", Scale::Linear),
            ("instructions", Scale::Linear),
            &[self.series(GROWTH[4].name)],
        )
    }
}
