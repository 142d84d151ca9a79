//! The documentation tells the truth: pages of methods follow the registry, and every recipe in them can be planned.
//!
//! `UPDATE_DOCS=1 cargo test -p merganser --test docs` writes the generated parts again.

#![allow(clippy::result_large_err)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use merganser::{MergeOptions, Quiet};
use serde_json::Value;

const BEGIN: &str =
    "<!-- generated from the registry of methods; what follows the end mark is written by hand -->";
const END: &str = "<!-- end of the generated part -->";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The registry, as the program prints it.
fn methods() -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_merganser"))
        .args(["methods", "--json"])
        .output()
        .expect("the program runs");
    String::from_utf8(output.stdout)
        .expect("UTF-8")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// A cell of a Markdown table.
fn cell(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    text.replace('|', "\\|")
}

fn generated(method: &Value) -> String {
    let word = |key: &str| method[key].as_str().expect("a text").to_owned();
    let summary = word("summary");
    let mut letters = summary.chars();
    let first = letters
        .next()
        .map_or(String::new(), |c| c.to_uppercase().to_string());
    let mut page = format!(
        "{BEGIN}\n# {}\n\n{first}{}.\n\n```text\n{}\n```\n\n",
        word("name"),
        letters.as_str(),
        word("formula")
    );
    let models = match (&method["models"]["min"], &method["models"]["max"]) {
        (min, Value::Null) => format!("{min} or more"),
        (min, max) if min == max => format!("exactly {min}"),
        (min, max) => format!("{min} to {max}"),
    };
    let besides = if method["base_model"] == "one more input, if given" {
        ""
    } else {
        " besides the base"
    };
    let known = if method["in_mergekit"] == true {
        "yes, with this name and meaning"
    } else {
        "no"
    };
    let _ = writeln!(page, "- Base model: {}.", word("base_model"));
    let _ = writeln!(page, "- Models: {models}{besides}.");
    let _ = writeln!(page, "- Source: {}.", word("source"));
    let _ = writeln!(page, "- In mergekit: {known}.\n");
    let parameters = method["parameters"].as_array().expect("a list");
    if parameters.is_empty() {
        page.push_str("It has no parameters.\n");
    } else {
        page.push_str(
            "| parameter | given | type | default | what it does |\n|---|---|---|---|---|\n",
        );
    }
    for parameter in parameters {
        let default = match (&parameter["default"], &parameter["required"]) {
            (Value::Null, Value::Bool(true)) => "required".to_owned(),
            (Value::Null, _) => "not set".to_owned(),
            (value, _) => cell(value),
        };
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {default} | {} |",
            cell(&parameter["name"]),
            cell(&parameter["scope"]),
            cell(&parameter["kind"]),
            cell(&parameter["summary"])
        );
    }
    page.push_str(END);
    page
}

fn contents(methods: &[Value]) -> String {
    let mut page = format!(
        "{BEGIN}\n# Merge methods\n\n| method | what it does | in mergekit |\n|---|---|---|\n"
    );
    for method in methods {
        let name = cell(&method["name"]);
        let known = if method["in_mergekit"] == true {
            "yes"
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "| [{name}]({name}.md) | {} | {known} |",
            cell(&method["summary"])
        );
    }
    page.push_str(END);
    page
}

/// Checks that a page begins with the generated part, or puts it there.
fn hold(path: &Path, generated: &str) {
    let page = fs::read_to_string(path).unwrap_or_default();
    if page.starts_with(&format!("{generated}\n")) {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "{} is out of date; run: UPDATE_DOCS=1 cargo test -p merganser --test docs",
        path.display()
    );
    let rest = page.split_once(END).map_or("\n", |(_, rest)| rest);
    fs::write(path, format!("{generated}{rest}")).expect("the page can be written");
}

#[test]
fn every_method_has_a_page_that_is_current() {
    let folder = root().join("docs/methods");
    let methods = methods();
    hold(&folder.join("README.md"), &contents(&methods));
    let mut pages = BTreeSet::from(["README.md".to_owned()]);
    for method in &methods {
        let name = format!("{}.md", cell(&method["name"]));
        let path = folder.join(&name);
        hold(&path, &generated(method));
        let page = read(&path);
        let example = format!("merge_method: {}\n", cell(&method["name"]));
        assert!(page.contains(&example), "{name} has no example recipe");
        pages.insert(name);
    }
    let found: BTreeSet<String> = fs::read_dir(&folder)
        .expect("docs/methods")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(found, pages, "files in docs/methods");
}

/// Every fenced block of a page that is marked `yaml` and nothing else, with the number of its first line.
fn recipes(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in page.lines().enumerate() {
        match &mut open {
            Some(_) if line == "```" => found.extend(open.take()),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
            }
            None if line == "```yaml" => open = Some((number + 2, String::new())),
            None => {}
        }
    }
    found
}

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            pages(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_recipe_of_the_documentation_fits_the_example_models() {
    let mut files = vec![root().join("README.md")];
    pages(&root().join("docs"), &mut files);
    let mut checked = 0;
    for file in files {
        for (line, recipe) in recipes(&read(&file)) {
            let place = root().join("examples").join("documented.yml");
            let options = MergeOptions::default();
            let planned = match merganser::asks_for_adapter(&place, &recipe, &options) {
                Ok(true) => merganser::plan_adapters(&place, &recipe, &options).err(),
                Ok(false) => merganser::plan_recipe(&place, &recipe, &options).err(),
                Err(failure) => Some(failure),
            };
            if let Some(failure) = planned {
                panic!(
                    "the recipe at {}:{line} is wrong:\n{failure}",
                    file.display()
                );
            }
            checked += 1;
        }
    }
    assert!(
        checked >= methods().len() - 1,
        "only {checked} recipes were found"
    );
}

#[test]
fn the_examples_can_be_merged() {
    let out = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(root().join("examples")).expect("examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yml") {
            let name = path.file_stem().unwrap_or_default();
            let folder = out.path().join(name);
            let (recipe, options) = (read(&path), MergeOptions::default());
            let adapter = merganser::asks_for_adapter(&path, &recipe, &options);
            let made = adapter.and_then(|adapter| {
                if adapter {
                    merganser::merge_adapters(&path, &recipe, &folder, &options, &Quiet)?;
                } else {
                    merganser::merge_recipe(&path, &recipe, &folder, &options, &Quiet)?;
                }
                Ok(adapter)
            });
            let adapter = made.unwrap_or_else(|failure| panic!("{}:\n{failure}", path.display()));
            if adapter {
                assert!(folder.join("adapter_model.safetensors").is_file());
                continue;
            }
            assert!(folder.join("model.safetensors").is_file());
            assert!(folder.join("tokenizer.json").is_file());
        }
    }
}
