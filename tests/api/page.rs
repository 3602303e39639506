//! A page of the documentation, as the tests read it: its commands, its blocks of code, its tables.
//!
//! Decides what counts as which. Leaves to each page's own test what is done with them.

use std::path::{Path, PathBuf};

/// A page, or a part of one.
#[derive(Clone, Copy)]
pub struct Page(pub &'static str);

impl Page {
    /// What stands under a heading, up to the next one that is not below it. A comment in a block is none.
    pub fn part(self, heading: &str) -> Self {
        let rank = |line: &str| line.bytes().take_while(|byte| *byte == b'#').count();
        let from =
            self.0.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("there is no {heading:?}"));
        let text = &self.0[from + 1..];
        let is_heading = |place: &usize| text[..*place].matches("```").count().is_multiple_of(2);
        let headings = text.match_indices("\n#").map(|(place, _)| place).filter(is_heading);
        let end = headings.into_iter().find(|place| rank(&text[place + 1..]) <= rank(heading));
        Self(&text[..end.unwrap_or(text.len())])
    }

    /// The commands, in their order: the indented lines that do not stand in a block.
    pub fn commands(self) -> Vec<&'static str> {
        // Every second piece is a block.
        let prose = self.0.split("```").step_by(2);
        prose.flat_map(str::lines).filter_map(|line| line.strip_prefix("    ")).collect()
    }

    /// The blocks of a language, in their order, as one text.
    pub fn blocks(self, language: &str) -> String {
        let opening = format!("```{language}\n");
        let parts = self.0.split(opening.as_str()).skip(1);
        parts.map(|part| part.split("```").next().unwrap()).collect::<Vec<_>>().concat()
    }

    /// The rows of all tables, without their heads: of each row its cells.
    pub fn rows(self) -> Vec<Vec<&'static str>> {
        let lines: Vec<&str> = self.0.lines().collect();
        let is_row = |line: &str| line.starts_with('|');
        let is_rule = |line: &str| line.starts_with("|---");
        let rows = lines.iter().enumerate().filter(|(number, line)| {
            let is_head = lines.get(number + 1).is_some_and(|next| is_rule(next));
            is_row(line) && !is_rule(line) && !is_head
        });
        rows.map(|(_, line)| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
    }
}

/// What is written as code in a text, in its order.
pub fn code(text: &'static str) -> Vec<&'static str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The programs of the bed's Python environment.
pub fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".testbed/python/bin");
    assert!(
        python.exists(),
        "there is no {}: run 'make test', or tests/bed/setup.sh --with-python",
        python.display()
    );
    python
}

#[test]
fn a_page() {
    const TEXT: &str = "# A page\n\n## One\n\n    first\n\n```toml\n# why\n[a]\n    b = 1\n```\n\n### Below\n\n    second\n\n\
                        | a | b |\n|---|---|\n| `x`, `y` | z |\n\n## Two\n\n    third\n";
    let page = Page(TEXT);
    assert_eq!(page.commands(), ["first", "second", "third"]);
    assert_eq!(page.part("## One").commands(), ["first", "second"]);
    assert_eq!(page.part("### Below").commands(), ["second"]);
    assert_eq!(page.part("## Two").commands(), ["third"]);
    assert_eq!(page.blocks("toml"), "# why\n[a]\n    b = 1\n");
    assert_eq!(page.rows(), [["`x`, `y`", "z"]]);
    assert_eq!(code(page.rows()[0][0]), ["x", "y"]);
}
