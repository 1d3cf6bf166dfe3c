//! The vectors of RFC 5769 and RFC 8489, and what is malformed.

use std::net::SocketAddr;

use super::*;

/// RFC 5769 §2.1, §2.2, §2.3: short-term, password below.
const SAMPLE_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
const SAMPLE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
const SAMPLE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";
const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";
/// RFC 5769 §2.4: long-term.
const SAMPLE_LONG_TERM: &str = "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014f67024656dd64a3e02b8e0712e85c9a28ca89666";
/// RFC 8489 B.1 with erratum 6268.
const SAMPLE_SHA256: &str = "000100902112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704001500296f624d61744a6f7332414141436 62f2f3439396b39353464364f4c33346f4c39465354767936347341000000 0014000b6578616d706c652e6f726700001d000400020000001c0020b5c7bf005b6c52a21c51c5e892f819241362 96cb927c43149309278cc6518e65";
const MATRIX: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

fn bytes(text: &str) -> Vec<u8> {
    hex::decode(text.replace(' ', "")).unwrap()
}

#[test]
fn rfc5769_request() {
    let bytes = bytes(SAMPLE_REQUEST);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(
        (message.class(), message.method()),
        (Class::Request, method::BINDING)
    );
    assert_eq!(message.get(attribute::USERNAME), Some(&b"evtj:h6vY"[..]));
    assert!(message.has_fingerprint());
    assert_eq!(message.integrity(), Some(Hash::Sha1));
    assert!(message.is_authentic(&Key::new(PASSWORD)));
    assert!(!message.is_authentic(&Key::new(b"another")));
    assert_eq!(message.unknown(), [0x0024], "PRIORITY is ICE's");
}

#[test]
fn rfc5769_responses_are_read_and_written() {
    for (text, address) in [
        (SAMPLE_V4, "192.0.2.1:32853"),
        (SAMPLE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ] {
        let address: SocketAddr = address.parse().unwrap();
        let bytes = bytes(text);
        let message = Message::parse(&bytes).unwrap();
        assert!(message.is_authentic(&Key::new(PASSWORD)));
        let value = message.get(attribute::XOR_MAPPED_ADDRESS).unwrap();
        assert_eq!(message.xor_address(value), Some(address));
        // The vectors pad with spaces: written in as a part of the value, whose length is set right after.
        let mut writer = Writer::new(Class::Success, method::BINDING, message.id());
        writer.add_xor_address(attribute::XOR_MAPPED_ADDRESS, address);
        let written = writer.finish(Some((&Key::new(PASSWORD), Hash::Sha1)), true);
        let again = Message::parse(&written).unwrap();
        assert!(again.is_authentic(&Key::new(PASSWORD)));
        assert_eq!(again.get(attribute::XOR_MAPPED_ADDRESS), Some(value));
    }
}

#[test]
fn rfc5769_and_rfc8489_long_term() {
    let md5 = bytes(SAMPLE_LONG_TERM);
    let message = Message::parse(&md5).unwrap();
    assert_eq!(message.get(attribute::USERNAME), Some(MATRIX.as_bytes()));
    assert!(message.is_authentic(&Key::md5(MATRIX, "example.org", "TheMatrIX")));
    assert!(!message.is_authentic(&Key::sha256(MATRIX, "example.org", "TheMatrIX")));

    let sha256 = bytes(SAMPLE_SHA256);
    let message = Message::parse(&sha256).unwrap();
    assert_eq!(message.integrity(), Some(Hash::Sha256));
    assert!(message.is_authentic(&Key::sha256(MATRIX, "example.org", "TheMatrIX")));
    assert!(!message.is_authentic(&Key::md5(MATRIX, "example.org", "TheMatrIX")));
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(format!("{MATRIX}:example.org"));
    assert_eq!(message.get(attribute::USERHASH), Some(&hash[..]));
    // Written again it is the same, byte for byte.
    let mut writer = Writer::new(Class::Request, method::BINDING, message.id());
    for (kind, value) in message.attributes() {
        writer.add(kind, value);
    }
    let key = Key::sha256(MATRIX, "example.org", "TheMatrIX");
    assert_eq!(writer.finish(Some((&key, Hash::Sha256)), false), sha256);
}

#[test]
fn every_method_and_class_comes_back() {
    for method in [0x001, 0x003, 0x007, 0x008, 0x010, 0x080, 0x7FF, 0xFFF] {
        for class in [
            Class::Request,
            Class::Indication,
            Class::Success,
            Class::Error,
        ] {
            let bytes = Writer::new(class, method, TransactionId([1; 12])).finish(None, false);
            let message = Message::parse(&bytes).unwrap();
            assert_eq!((message.class(), message.method()), (class, method));
        }
    }
}

#[test]
fn malformed_messages_are_refused() {
    let good = bytes(SAMPLE_LONG_TERM);
    for len in 0..good.len() {
        assert!(Message::parse(&good[..len]).is_err(), "cut to {len}");
    }
    assert!(
        Message::parse(&[&good[..], &[0; 4]].concat()).is_err(),
        "bytes left over"
    );
    let attribute = |at: usize, value: [u8; 2]| {
        let mut bytes = good.clone();
        bytes[at..at + 2].copy_from_slice(&value);
        Message::parse(&bytes).is_ok()
    };
    for len in [
        [0xFF, 0xFF],
        [0xFF, 0xFC],
        [0x00, 0x61],
        [0x00, 0x5C],
        [0x00, 0x64],
    ] {
        assert!(!attribute(2, len), "header length {len:02x?}");
    }
    for len in [[0xFF, 0xFF], [0xFF, 0xFD], [0x01, 0x00], [0x00, 0x5D]] {
        assert!(!attribute(22, len), "attribute length {len:02x?}");
    }
    let mut many = Writer::new(Class::Request, method::BINDING, TransactionId([0; 12]));
    for _ in 0..MAX_ATTRIBUTES {
        many.add(0x9000, &[]);
    }
    let bytes = many.finish(None, false);
    assert!(Message::parse(&bytes).is_ok());
    let mut more = bytes.clone();
    more.extend([0x90, 0, 0, 0]);
    more[3] += 4;
    assert!(Message::parse(&more).is_err());
    // A FINGERPRINT that is not last, an integrity of another length.
    let mut early = Writer::new(Class::Request, method::BINDING, TransactionId([0; 12]));
    early.add(attribute::MESSAGE_INTEGRITY, &[0; 16]);
    assert!(Message::parse(&early.finish(None, false)).is_err());
    let mut cut = Writer::new(Class::Request, method::BINDING, TransactionId([0; 12]));
    cut.add(attribute::MESSAGE_INTEGRITY_SHA256, &[0; 16]);
    assert!(Message::parse(&cut.finish(None, false)).is_err());
}

#[test]
fn frames_of_a_stream() {
    let stun =
        Writer::new(Class::Request, method::BINDING, TransactionId([1; 12])).finish(None, false);
    assert_eq!(stream_frame(&stun), Ok(Some(20)));
    assert_eq!(stream_frame(&stun[..7]), Ok(None));
    for (head, len) in [
        ([0x40, 0, 0, 5], 12),
        ([0x4F, 0xFF, 0, 0], 4),
        ([0x7F, 0xFE, 0xFF, 0xFF], 65_540),
    ] {
        assert_eq!(stream_frame(&head), Ok(Some(len)));
    }
    for bad in [
        &b"GET / HTTP/1.1"[..],
        &[0x00, 1, 0, 4, 0, 0, 0, 0],
        &[0x80],
        &[0x16, 3, 1, 0, 1, 0, 0, 0],
    ] {
        let framed = stream_frame(bad);
        // `G` is a channel number of old; it leads nowhere, and its frame is too long for a stranger.
        assert!(
            framed == Err(Desynchronized) || bad[0] == b'G',
            "{bad:02x?}: {framed:?}"
        );
    }
    let frame = [&channel_header(0x4001, 3).unwrap()[..], b"abc", &[0]].concat();
    let data = ChannelData::parse(&frame).unwrap();
    assert_eq!((data.number, data.payload), (0x4001, &b"abc"[..]));
    assert_eq!(ChannelData::parse(&frame[..6]), None);
    assert_eq!(channel_header(0x4000, 65_536), None);
}
