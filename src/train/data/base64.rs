//! Base64 (RFC 4648, the standard alphabet), strictly.

/// The bytes of `text`: the standard alphabet, padded, without white space. None for anything else,
/// bits left over in the last digit included.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let pads = text.iter().rev().take_while(|&&c| c == b'=').count();
    let digits = text.get(..text.len().checked_sub(pads)?).filter(|_| pads <= 2)?;
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for chunk in digits.chunks(4) {
        let mut bits = 0u32;
        for &c in chunk {
            bits = bits << 6 | digit(c)?;
        }
        bits <<= 6 * (4 - chunk.len());
        let [_, out @ ..] = bits.to_be_bytes();
        let (whole, rest) = out.split_at(chunk.len() - 1);
        if chunk.len() < 4 && rest.iter().any(|&b| b != 0) {
            return None;
        }
        bytes.extend_from_slice(whole);
    }
    Some(bytes)
}

fn digit(c: u8) -> Option<u32> {
    let value = match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_the_standard() {
        let known = [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ];
        for (text, bytes) in known {
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(decode("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
    }

    #[test]
    fn what_is_not_base64_is_refused() {
        for text in
            ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "====", "Z===", "Zm 9v", "Zm9v\n", "Zg==Zg=="]
        {
            assert_eq!(decode(text), None, "{text:?}");
        }
        assert_eq!(decode("Zm9é"), None);
    }
}
