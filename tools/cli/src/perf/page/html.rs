//! Text in HTML. Whatever a device, a user or the machine says of itself goes through `escape`.

use std::fmt::Write;

/// Text as it is, and never markup.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(letter),
            // Neither what is invisible, nor what turns the direction of the text around it.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                escaped.push('\u{fffd}')
            }
            letter if letter.is_control() => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// A table of names and values.
pub fn pairs(title: &str, rows: &[(String, String)], numbers: bool) -> String {
    let class = if numbers { " class=\"n\"" } else { "" };
    let mut html = format!("<section><h2>{}</h2><table>", escape(title));
    for (name, value) in rows {
        let _ = write!(html, "<tr><th>{}</th><td{class}>{}</td></tr>", escape(name), escape(value));
    }
    html + "</table></section>\n"
}

/// A table with a head; all columns but the first are numbers.
pub fn columns(title: &str, rows: &[Vec<String>]) -> String {
    let mut html = format!("<section><h2>{}</h2><div class=\"wide\"><table>", escape(title));
    for (index, row) in rows.iter().enumerate() {
        let tag = if index == 0 { "th" } else { "td" };
        html += "<tr>";
        for (column, cell) in row.iter().enumerate() {
            let class = if column > 0 { " class=\"n\"" } else { "" };
            let _ = write!(html, "<{tag}{class}>{}</{tag}>", escape(cell));
        }
        html += "</tr>";
    }
    html + "</table></div></section>\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markup_is_text() {
        assert_eq!(
            escape("<script>alert('x' + \"&\")</script>"),
            "&lt;script&gt;alert(&#39;x&#39; + &quot;&amp;&quot;)&lt;/script&gt;"
        );
        assert_eq!(escape("a\u{0}b\u{1b}[2Jc\u{202e}d"), "a\u{fffd}b\u{fffd}[2Jc\u{fffd}d");
        let table = pairs("<b>", &[("<i>".into(), "</table>".into())], true);
        assert!(!table.contains("<b>") && !table.contains("<i>") && table.matches("</table>").count() == 1);
    }

    proptest! {
        #[test]
        fn nothing_gets_out(text: String) {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']));
            let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
            let rest = entities.iter().fold(escaped, |rest, entity| rest.replace(entity, ""));
            prop_assert!(!rest.contains('&'));
        }
    }
}
