//! What a definition must not have before it is parsed.
//!
//! Decides by counting, in one pass: the parser compares each attribute of an element with all before it, and each name
//! with all namespaces around it, so a definition within [`super::description`]'s other bounds could keep it busy for
//! hours. What libvirt writes is far below.

/// Most attributes of an element. libvirt's longest have a dozen.
const MOST_ATTRIBUTES: usize = 256;

/// Most declarations of namespaces. Who puts metadata into a definition declares one.
const MOST_NAMESPACES: usize = 1000;

/// What is too much in a text, in words.
pub(super) fn excess(xml: &str) -> Option<String> {
    if xml.matches("xmlns").nth(MOST_NAMESPACES).is_some() {
        return Some(format!("it declares more than {MOST_NAMESPACES} namespaces"));
    }
    let is_excessive = xml.split('<').skip(1).any(|tag| attributes(tag) > MOST_ATTRIBUTES);
    is_excessive.then(|| format!("an element has more than {MOST_ATTRIBUTES} attributes"))
}

/// Attributes of a tag, given from behind its `<`. A value has no `<` in it: XML does not allow that.
fn attributes(tag: &str) -> usize {
    let (mut attributes, mut quote) = (0, None);
    for byte in tag.bytes() {
        match (byte, quote) {
            (b'\'' | b'"', None) => quote = Some(byte),
            (byte, Some(open)) if byte == open => quote = None,
            (b'=', None) => attributes += 1,
            (b'>', None) => break,
            _ => {}
        }
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_excessive() {
        let check = |xml: &str, expected| assert_eq!(excess(xml).is_some(), expected, "{xml:.60}");
        let attributes = |number: usize| " a='>='".repeat(number);
        check(&format!("<x>=<a{}/></x>", attributes(MOST_ATTRIBUTES)), false);
        check(&format!("<x>=<a{}/></x>", attributes(MOST_ATTRIBUTES + 1)), true);
        check(&format!("<a b=\"{}\">{}</a>", "=".repeat(1000), "=".repeat(1000)), false);
        check(&"<a xmlns='x'/>".repeat(MOST_NAMESPACES), false);
        check(&"<a xmlns='x'/>".repeat(MOST_NAMESPACES + 1), true);
        check("", false);
    }
}
