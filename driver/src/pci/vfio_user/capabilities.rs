//! What the two ends of a connection tell each other that they can do: the JSON that follows a version.
//!
//! Knows names and defaults of capabilities; must not know what follows from them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::message::Version;

/// The longest VERSION payload that is looked at, in bytes.
pub const MAX_VERSION_PAYLOAD: usize = 16 * 1024;

/// Capabilities of one end; what is `None` was not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Files that the sender can receive with one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u64>,
    /// Bytes of data in one message that the sender can receive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// Mappings that can be there at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of mappings, one bit each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// A socket of its own for the server's commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// Whether REGION_WRITE_MULTI is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
}

/// The `twin_socket` capability.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TwinSocket {
    /// Whether it can be had.
    pub supported: bool,
    /// In a reply: which of the message's files it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u64>,
}

/// What the JSON of a version is.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct VersionData {
    capabilities: Capabilities,
}

/// Why a payload is not one of VERSION.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadVersion(String);

impl Capabilities {
    /// [`max_msg_fds`](Capabilities::max_msg_fds), or its default: 1.
    pub fn msg_fds(&self) -> u64 {
        self.max_msg_fds.unwrap_or(1)
    }

    /// [`max_data_xfer_size`](Capabilities::max_data_xfer_size), or its default: 1 MiB.
    pub fn data_xfer_size(&self) -> u64 {
        self.max_data_xfer_size.unwrap_or(1 << 20)
    }

    /// [`max_dma_maps`](Capabilities::max_dma_maps), or its default: 65535.
    pub fn dma_maps(&self) -> u64 {
        self.max_dma_maps.unwrap_or(65535)
    }

    /// [`pgsizes`](Capabilities::pgsizes), or its default: 4 KiB only.
    pub fn page_sizes(&self) -> u64 {
        self.pgsizes.unwrap_or(4096)
    }

    /// The payload of VERSION, or of its reply. With `None` there is no JSON at all, which is how some
    /// peers want it.
    pub fn version_payload(version: Version, capabilities: Option<&Capabilities>) -> Vec<u8> {
        let mut payload = version.as_bytes().to_vec();
        if let Some(capabilities) = capabilities {
            let data = VersionData { capabilities: capabilities.clone() };
            // Numbers and booleans with fixed names: there is nothing in it that JSON could not say.
            payload.extend(serde_json::to_vec(&data).unwrap_or_default());
            payload.push(0);
        }
        payload
    }

    /// Reads the payload of VERSION, or of its reply. No JSON means that nothing was said. What the
    /// specification does not name is ignored, and so is what follows the NUL.
    pub fn parse_version(payload: &[u8]) -> Result<(Version, Capabilities), BadVersion> {
        let len = payload.len();
        if len > MAX_VERSION_PAYLOAD {
            return Err(BadVersion(format!(
                "a version of {len} bytes, and {MAX_VERSION_PAYLOAD} is the most that is read"
            )));
        }
        let (version, data) = Version::read_from_prefix(payload)
            .map_err(|_| BadVersion(format!("a version of {len} bytes, and 4 is the least")))?;
        if data.is_empty() {
            return Ok((version, Capabilities::default()));
        }
        let end = data.iter().position(|byte| *byte == 0);
        let end = end.ok_or_else(|| BadVersion("the version's JSON does not end with a NUL".into()))?;
        let json = data.get(..end).unwrap_or_default();
        if json.is_empty() {
            return Ok((version, Capabilities::default()));
        }
        let data: VersionData = serde_json::from_slice(json)
            .map_err(|error| BadVersion(format!("the version's JSON is wrong: {error}")))?;
        Ok((version, data.capabilities))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &[u8]) -> Result<Capabilities, BadVersion> {
        let mut payload = Version { major: 0, minor: 1 }.as_bytes().to_vec();
        payload.extend(json);
        Capabilities::parse_version(&payload).map(|(_, capabilities)| capabilities)
    }

    #[test]
    fn nothing_said_is_the_defaults() {
        for json in [&b""[..], b"\0", b"{}\0", b"{\"capabilities\":{}}\0", b"{\"other\":[1]}\0garbage"] {
            let got = parse(json).unwrap();
            assert_eq!(got, Capabilities::default(), "{json:?}");
            assert_eq!((got.msg_fds(), got.data_xfer_size()), (1, 1048576));
            assert_eq!((got.dma_maps(), got.page_sizes()), (65535, 4096));
        }
    }

    #[test]
    fn what_a_common_server_says_is_understood() {
        let got = parse(
            b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576,\"migration\":{\"pgsize\":4096},\
              \"twin_socket\":{\"supported\":false},\"write_multiple\":true,\"pgsizes\":4198400}}\0",
        )
        .unwrap();
        assert_eq!(got.max_msg_fds, Some(8));
        assert_eq!(got.twin_socket, Some(TwinSocket::default()));
        assert_eq!((got.write_multiple, got.pgsizes), (Some(true), Some(0x401000)));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for json in [
            &b"{}"[..],
            b"{\0",
            b"[]x\0",
            b"\xff\0",
            b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
            b"{\"capabilities\":{\"max_msg_fds\":\"8\"}}\0",
            b"{\"capabilities\":3}\0",
        ] {
            assert!(parse(json).is_err(), "{json:?}");
        }
        assert!(Capabilities::parse_version(&[0; 3]).is_err());
        assert!(Capabilities::parse_version(&vec![b'['; MAX_VERSION_PAYLOAD + 1]).is_err());
        assert!(parse(&[&[b'['; 10_000][..], b"\0"].concat()).is_err(), "nested too deep");
    }

    #[test]
    fn what_is_written_is_read() {
        let all = Capabilities {
            max_msg_fds: Some(1),
            max_data_xfer_size: Some(u64::MAX),
            max_dma_maps: Some(0),
            pgsizes: Some(4096),
            twin_socket: Some(TwinSocket { supported: true, fd_index: Some(0) }),
            write_multiple: Some(false),
        };
        for capabilities in [None, Some(&Capabilities::default()), Some(&all)] {
            let payload = Capabilities::version_payload(Version::CURRENT, capabilities);
            let (version, read) = Capabilities::parse_version(&payload).unwrap();
            assert_eq!(
                (version, &read),
                (Version::CURRENT, capabilities.unwrap_or(&Capabilities::default()))
            );
            assert_eq!(payload.len() == 4, capabilities.is_none());
        }
    }
}
