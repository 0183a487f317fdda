// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who sent a message to the root task: badges of its endpoint.

use umbra_description::supervisor::Role;

/// Whether a component speaks, or the kernel about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A message of `umbra_description::supervisor`.
    Message,
    /// A fault of the component's thread.
    Fault,
}

/// A sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Number of the VM.
    pub vm: u16,
    /// Which of its components.
    pub role: Role,
    /// Who speaks.
    pub kind: Kind,
}

impl Source {
    /// The badge: never 0, below 2^20.
    pub const fn to_badge(self) -> u64 {
        let role = match self.role {
            Role::Vmm => 0,
            Role::Mmu => 1,
        };
        let kind = match self.kind {
            Kind::Message => 0,
            Kind::Fault => 1,
        };
        (self.vm as u64 + 1) << 2 | role << 1 | kind
    }

    /// The sender with this badge, if there is one.
    pub fn from_badge(badge: u64) -> Option<Self> {
        let vm = u16::try_from((badge >> 2).checked_sub(1)?).ok()?;
        let role = if badge & 2 == 0 { Role::Vmm } else { Role::Mmu };
        let kind = if badge & 1 == 0 { Kind::Message } else { Kind::Fault };
        Some(Self { vm, role, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn badges_are_different_and_lead_back() {
        let mut last = 3;
        for vm in [0, 1, 15, u16::MAX] {
            for role in [Role::Vmm, Role::Mmu] {
                for kind in [Kind::Message, Kind::Fault] {
                    let source = Source { vm, role, kind };
                    let badge = source.to_badge();
                    assert!(badge > last && badge < 1 << 20);
                    assert_eq!(Source::from_badge(badge), Some(source));
                    last = badge;
                }
            }
        }
        for badge in [0, 1, 2, 3, 1 << 20] {
            assert_eq!(Source::from_badge(badge), None, "{badge:#x}");
        }
    }
}
