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
    /// Where the budget is not reached: what the value may be all the same.
    reached: Option<f64>,
}

impl Figure {
    /// A regression, or a budget that is missed for the first time.
    fn is_bad(&self) -> bool {
        self.value > self.reached.unwrap_or(self.budget)
    }

    fn verdict(&self) -> &'static str {
        match (self.is_bad(), self.value > self.budget) {
            (true, _) => "ABOVE",
            (false, true) => "above the budget, as known",
            (false, false) => "",
        }
    }
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
        let total = count::instructions(case.counted, &["--case".to_owned(), case.name.to_owned()])?;
        report.figures.push(Figure {
            name: case.name.to_owned(),
            value: (total as f64 / case.count as f64).round(),
            unit: "instructions",
            budget: case.budget as f64,
            reached: case.reached.map(|reached| reached as f64),
        });
    }
    let memory = [
        (
            "metadata per mapped 4K page, EPT mode",
            memory::ept_bytes_per_page(),
            24.0,
        ),
        (
            "metadata per mapped 4K page, shadow mode",
            memory::shadow_bytes_per_page(),
            40.0,
        ),
    ];
    for (name, bytes, budget) in memory {
        report.figures.push(Figure {
            name: name.to_owned(),
            value: (bytes * 10.0).round() / 10.0,
            unit: "bytes",
            budget,
            reached: None,
        });
    }
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
        ("core.md", report.markdown()),
        ("core-shadow.svg", report.shadow_plot()),
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
                let total = count::instructions(
                    count::MEASURED,
                    &["--growth".to_owned(), growth.name.to_owned(), at.to_string()],
                )?;
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
        !self.figures.iter().any(Figure::is_bad) && self.curves.iter().all(|curve| curve.within)
    }

    /// The figures as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for figure in &self.figures {
            let Figure {
                name,
                value,
                unit,
                budget,
                reached,
            } = figure;
            let limit = reached.map_or(String::new(), |reached| format!(", limit {reached}"));
            let verdict = figure.verdict();
            let _ = writeln!(out, "{name:52} {value:6} {unit:12} (budget {budget}{limit}) {verdict}");
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

    /// The figures as a page of the documentation.
    fn markdown(&self) -> String {
        let mut out = HEAD.to_owned();
        out += "| what | figure | budget | |\n|---|--:|--:|---|\n";
        for figure in &self.figures {
            let (verdict, unit) = (figure.verdict(), figure.unit);
            let limit = figure
                .reached
                .map_or(String::new(), |reached| format!("; limit {reached}"));
            let note = if verdict.is_empty() {
                String::new()
            } else {
                format!("{verdict}{limit}")
            };
            let Figure {
                name, value, budget, ..
            } = figure;
            let _ = writeln!(out, "| {name} | {value} {unit} | {budget} | {note} |");
        }
        out += MISSED;
        out += GROWS;
        for Curve { name, points, within } in &self.curves {
            let _ = writeln!(out, "\n**{name}**{}\n", if *within { "" } else { " GROWS" });
            let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
            out += &row(points.iter().map(|(_, at, _)| (*at).to_owned()).collect());
            out += &row(points.iter().map(|_| "--:".to_owned()).collect());
            out += &row(points.iter().map(|(_, _, cost)| cost.to_string()).collect());
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let _ = writeln!(
            out,
            "\n## In parallel\n\nEPT faults on fresh 4K pages per second of wall time, a thread for each vCPU, on a machine \
             with {processors} processors. Not repeatable to the digit, and no budget.\n"
        );
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        out += &row(self
            .throughput
            .iter()
            .map(|(vcpus, _)| format!("{vcpus} vCPUs"))
            .collect());
        out += &row(self.throughput.iter().map(|_| "--:".to_owned()).collect());
        let millions = |rate: &f64| format!("{:.1}M", rate / 1e6);
        out += &row(self.throughput.iter().map(|(_, rate)| millions(rate)).collect());
        out
    }

    fn shadow_plot(&self) -> String {
        lines(
            "Cost of a shadow fault beside mapped memory",
            ("mapped memory, MiB", Scale::Logarithmic),
            ("instructions", Scale::Linear),
            &[in_mib(self.series(GROWTH[5].name))],
        )
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
        let pages_to_mib = [0, 1, 2].map(|i| in_mib(self.series(GROWTH[i].name)));
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

/// A series over pages of 4K, over MiB.
fn in_mib(series: Series) -> Series {
    let points = series.points.iter().map(|(pages, cost)| (pages / 256.0, *cost));
    Series {
        points: points.collect(),
        ..series
    }
}

/// What comes before the figures.
const HEAD: &str = "\
<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->
# What the MMU's core costs

    cargo run --release -p umbra-bench                              # the figures, and whether they are good
    cargo run --release -p umbra-bench -- write docs/measurements   # this page and its plots (minutes)

Instructions of user space as valgrind (callgrind) counts them, averaged over thousands of operations, in the release profile (fat
LTO), above hardware that does nothing: what the core itself executes, exact and repeatable for one compiler. A fault counts
from the call of `Mmu::fault` to its return, all locks and atomics included; a lookup from its call to its return; the others are whole
operations, divided by the pages that they change. Bytes are the heap's, as an allocator counts them, without the tables of sptes.
`./umbra test` fails where a figure is above its budget; where a budget is not reached, above what was reached (\"limit\").

In EPT mode a fault is *typical* when it lies in the table and the slot of the vCPU's last one; tables in place. The MMIO fault in
an spte alternates between two pages (I/O APIC, HPET), of which the vCPU remembers one. In shadow mode the guest has four levels
of its own, its tables are shadowed already, and entries are 8 bytes of its memory that the walk reads and marks.

";

/// Why budgets are not reached; as callgrind_annotate tells it.
const MISSED: &str = "
## Where the rest goes

**Shadow fault, warm path.** By the file of the source, of 100 instructions: 20 `shadow/usual.rs`, the path of the last fault and
the checks that it still holds; 14 bounds checks of tables, slots and words, and the vectors under them; 8 `shadow/fetch.rs` and
`spte/shadow.rs`, the leaf; 6 atomics and locks; 6 `shadow/gpte.rs` and `shadow/walk.rs`, rights and reserved bits of the guest's
entry, which is read, marked by compare-and-exchange, and read again under mmu_lock; 4 `shadow/fault.rs`, registers and the
memory of MMIO; 4 `shadow/prefetch.rs`, a look at the 8 words beside the spte, of which none can be used here; 2 the bench's guest
memory; the rest are single per cents: slots, host memory, reverse map, list of use, room for the next fault. What would be left
to save is mostly what one closure saves for the other, and bounds checks.

**MMIO fault, cached in an spte.** 10 for the vCPU's own memory, which comes first; 26 to find the word in the table of the last fault
and to compare it; 12 to remember it; 11 for the answer, with the counter; 4 for registers that are saved.

**Other faults in shadow mode.** Beside the warm path: the first write walks all four levels of the guest, and fetches the path of
shadow pages; 7 neighbours take about 400 each; a leaf table that becomes unsync tells the pages above; an MMIO spte is found by a
walk of the shadow pages, of four levels.
";

/// What comes before the curves.
const GROWS: &str = "
## How it grows

Instructions of one operation, by what is mapped or cached beside it.

![cost beside mapped memory](core-memory.svg)
![cost of a shadow fault beside mapped memory](core-shadow.svg)
![cost with more vCPUs](core-vcpus.svg)
";
