// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a case run: files damaged, system put together, booted, typed at, judged?

use super::case::{Case, Damage, DamagedFile};
use super::suite::Silent;
use super::verdict::Verdict;
use crate::build::description::Description;
use crate::build::program::Programs;
use crate::build::spec::{Guest, VmSpec, describe};
use crate::build::{Builder, Kernel, image};
use crate::guests;
use crate::run::prompt;
use crate::run::session::{Input, Plan, Report, follow};
use crate::sim::{Pace, Sim, start};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// What a case needs that others share.
#[derive(Clone, Copy, Debug)]
pub struct Rig<'a> {
    /// The tool's steps and paths.
    pub builder: &'a Builder,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Root task and components.
    pub programs: &'a Programs,
}

impl Rig<'_> {
    /// Runs `case` and gives the verdict.
    pub fn judge(&self, case: &Case, sim: Sim) -> Verdict {
        if let Some(why) = sim.unusable() {
            return Verdict::NotRun(why);
        }
        match self.run(case, sim) {
            Ok(Ended::Ran(report)) => case.judge(&report),
            Ok(Ended::Refused) => Verdict::Passed,
            Err(error) => Verdict::failed(format!("{error:#}"), ""),
        }
    }

    /// Runs `case` to its end.
    pub fn run(&self, case: &Case, sim: Sim) -> Result<Ended> {
        let mut specs = Vec::new();
        for vm in &case.vm {
            let guest = guests::load(self.builder, &vm.guest, vm.plain)?;
            specs.push(VmSpec {
                guest,
                wishes: vm.wishes.clone(),
            });
        }
        for damage in &case.damage {
            damage_guest(damage, &mut specs[0].guest)?;
        }
        let pattern = specs[0]
            .guest
            .prompt
            .clone()
            .unwrap_or_else(|| prompt::USUAL.to_owned());
        let base = Description::read(&self.builder.paths.root().join("root-task/system.toml"))?;
        let (mut description, files) = describe(base, &specs, &case.system)?;
        description.set("power-off", sim.power_off());
        if let Some(refusal) = &case.refused {
            let Err(error) = description.compile() else {
                anyhow::bail!("the system was not refused")
            };
            let text = format!("{error:#}");
            ensure!(
                regex::Regex::new(refusal)?.is_match(&text),
                "refused, but without {refusal:?}: {text}"
            );
            return Ok(Ended::Refused);
        }
        let mut payload = image::payload(&files)?;
        for damage in case.damage.iter().filter(|damage| damage.file == DamagedFile::Payload) {
            apply(damage, &mut payload)?;
        }
        let label = format!("case-{}-{}", case.name, sim.name());
        let policy = case.policy.as_ref().map(|wishes| {
            let mut policy = description.clone();
            policy.merge_into_vms(wishes);
            policy
        });
        let image = image::system_with_policy(
            self.builder,
            self.kernel,
            self.programs,
            (description, policy),
            &payload,
            image::Ports::Two,
            &label,
        )?;
        let machine = image.machine(sim, case.plain_disk, Pace::Batch);
        let running = start(&self.builder.paths, sim, &machine, &label)?;
        let plan = Plan {
            input: Input::Lines(case.typed.clone()),
            prompt: pattern,
            timeout: Some(Duration::from_secs(case.timeout)),
            until: case.until.clone(),
        };
        let report = follow(running, plan, &mut Silent)?;
        image.remove();
        Ok(Ended::Ran(Box::new(report)))
    }
}

/// How a case came to its end.
#[derive(Debug)]
pub enum Ended {
    /// It was booted.
    Ran(Box<Report>),
    /// Its description was refused, as it should be.
    Refused,
}

fn damage_guest(damage: &Damage, guest: &mut Guest) -> Result<()> {
    match damage.file {
        DamagedFile::Kernel => apply(damage, &mut guest.kernel),
        DamagedFile::Initrd => apply(
            damage,
            guest.initrd.as_mut().context("the guest has no initrd to damage")?,
        ),
        DamagedFile::Payload => Ok(()),
    }
}

fn apply(damage: &Damage, content: &mut Vec<u8>) -> Result<()> {
    if let Some(cut) = damage.cut {
        ensure!(
            cut < content.len(),
            "cut at {cut}, but the file has only {} bytes",
            content.len()
        );
        content.truncate(cut);
    }
    if let Some(at) = damage.flip {
        let len = content.len();
        let byte = content
            .get_mut(at)
            .with_context(|| format!("flip at {at}, but the file has only {len} bytes"))?;
        *byte ^= 0xff;
    }
    if let Some(text) = &damage.text {
        *content = text.as_bytes().to_vec();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(cut: Option<usize>, flip: Option<usize>, text: Option<&str>) -> Damage {
        Damage {
            file: DamagedFile::Kernel,
            cut,
            flip,
            text: text.map(str::to_owned),
        }
    }

    #[test]
    fn damage_does_something_or_fails() {
        let mut guest = Guest {
            kernel: vec![1, 2, 3],
            ..Guest::default()
        };
        damage_guest(&damage(None, Some(1), None), &mut guest).unwrap();
        assert_eq!(guest.kernel, [1, 0xfd, 3]);
        damage_guest(&damage(Some(2), None, None), &mut guest).unwrap();
        assert_eq!(guest.kernel, [1, 0xfd]);
        assert!(damage_guest(&damage(Some(2), None, None), &mut guest).is_err());
        assert!(damage_guest(&damage(None, Some(2), None), &mut guest).is_err());
        damage_guest(&damage(None, None, Some("x")), &mut guest).unwrap();
        assert_eq!(guest.kernel, b"x");
    }

    #[test]
    fn a_missing_initrd_cannot_be_damaged() {
        let mut initrd = damage(Some(1), None, None);
        initrd.file = DamagedFile::Initrd;
        assert!(damage_guest(&initrd, &mut Guest::default()).is_err());
    }
}
