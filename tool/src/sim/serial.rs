// SPDX-License-Identifier: MIT OR Apache-2.0
//! How does a simulated serial port reach the tool? By a local socket that the simulator connects to.

use crate::process::Group;
use anyhow::{Context, Result, bail};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Time that a simulator gets to open its serial ports.
const LIMIT: Duration = Duration::from_secs(60);

/// A serial port that waits for its simulator.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    number: u16,
}

impl Port {
    /// A new port on a free number of the loopback interface.
    pub fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a local port for a serial line")?;
        listener
            .set_nonblocking(true)
            .context("a local port for a serial line")?;
        let number = listener.local_addr().context("a local port for a serial line")?.port();
        Ok(Self { listener, number })
    }

    /// The TCP port number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Waits for the simulator; gives up when it ends or takes too long.
    pub fn accept(&self, simulator: &mut Group) -> Result<TcpStream> {
        let end = Instant::now() + LIMIT;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).context("a serial line")?;
                    stream.set_nodelay(true).context("a serial line")?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("a serial line"),
            }
            if let Some(status) = simulator.poll()? {
                bail!("the simulator ended before it opened its serial ports ({status})");
            }
            if Instant::now() > end {
                bail!("the simulator did not open its serial ports in {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_simulator_that_ends_early_is_noticed() {
        let port = Port::listen().unwrap();
        let mut group = Group::start(&mut Command::new("true")).unwrap();
        let error = port.accept(&mut group).unwrap_err().to_string();
        assert!(error.contains("exit status: 0"), "{error}");
    }

    #[test]
    fn two_ports_differ_and_connect() {
        let (a, b) = (Port::listen().unwrap(), Port::listen().unwrap());
        assert_ne!(a.number(), b.number());
        let mut group = Group::start(Command::new("sleep").arg("5")).unwrap();
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, b.number())).unwrap();
        let server = b.accept(&mut group).unwrap();
        assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
    }
}
