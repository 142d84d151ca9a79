//! The three readings of a report, from the smallest to the largest and the most hostile.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use merganser_report::{Error, Layer, Method, MethodKind, Pairwise, Report, Score, Task};

mod samples;

fn all() -> Vec<(&'static str, Report)> {
    let mut unmeasured = samples::small();
    for layer in &mut unmeasured.layers {
        layer.energy = None;
        layer.captured.values_mut().for_each(|it| *it = None);
        layer.captured_by_task.clear();
    }
    for method in &mut unmeasured.methods {
        method.accuracy = None;
    }
    vec![
        ("empty", Report::default()),
        ("one layer", samples::one_layer()),
        ("small", samples::small()),
        ("large", samples::large()),
        ("hostile", samples::hostile()),
        ("unmeasured", unmeasured),
    ]
}

/// The tags of a page: names and the text of their attributes. Escaped text has no `<`.
fn tags(page: &str) -> Vec<(String, String)> {
    let parts = page.split('<').skip(1);
    let tag = |part: &str| {
        let mut quoted = false;
        let end = part.find(|c| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let tag = &part[..end.unwrap_or(part.len())];
        let (name, attributes) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let name = name.trim_end_matches('/').to_ascii_lowercase();
        (name, attributes.to_owned())
    };
    parts.map(tag).collect()
}

/// The attributes' names: what stands before `="`.
fn attributes(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('"').collect();
    let names = parts.iter().step_by(2);
    let names = names.filter_map(|name| name.trim().strip_suffix('='));
    names.map(str::to_owned).collect()
}

#[test]
fn text_never_becomes_markup() {
    let tame: BTreeSet<String> = tags(&samples::small().to_html().unwrap())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    for forbidden in ["script", "img", "iframe", "object", "embed", "base", "form"] {
        assert!(!tame.contains(forbidden), "{forbidden}");
    }
    for (which, report) in all() {
        let page = report.to_html().unwrap();
        for (name, text) in tags(&page) {
            assert!(tame.contains(&name), "{which}: <{name} {text}>");
            for attribute in attributes(&text) {
                let harmless =
                    !attribute.starts_with("on") && !attribute.contains(['<', '\'', ' ']);
                assert!(harmless, "{which}: {attribute} in <{name} {text}>");
            }
        }
        assert!(!page.contains("49}"), "{which}: a template was evaluated");
        assert!(!page.contains('\u{202e}'), "{which}: text can turn around");
        assert!(!page.contains('\u{1b}'), "{which}");
    }
    let hostile = samples::hostile().to_html().unwrap();
    assert!(hostile.contains("{{ 7*7 }}{% raw %}"));
    assert!(hostile.contains("&lt;script&gt;alert(1)"));
}

#[test]
fn the_page_is_complete_in_itself() {
    for (which, report) in all() {
        let page = report.to_html().unwrap();
        assert!(page.contains("default-src 'none'"));
        for (name, text) in tags(&page) {
            for attribute in attributes(&text) {
                let refers = ["src", "href", "srcset", "data", "action", "xlink:href"];
                let icon = text.contains("href=\"data:,\"");
                assert!(
                    !refers.contains(&attribute.as_str()) || icon,
                    "{which}: <{name} {text}>"
                );
            }
        }
        let style = page.split_once("<style>").unwrap().1;
        let style = style.split_once("</style>").unwrap().0;
        assert!(!style.contains("url(") && !style.contains("@import"));
    }
}

#[test]
fn elements_are_closed() {
    let void = ["!doctype", "meta", "link", "line", "rect", "circle", "path"];
    for (which, report) in all() {
        let page = report.to_html().unwrap();
        let mut open = Vec::new();
        for (name, text) in tags(&page) {
            if let Some(closed) = name.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(closed), "{which}");
            } else if !text.ends_with('/') && !void[..3].contains(&name.as_str()) {
                open.push(name);
            } else {
                assert!(void.contains(&name.as_str()), "{which}: <{name} {text}>");
            }
        }
        assert!(open.is_empty(), "{which}: {open:?}");
    }
}

#[test]
fn no_number_is_nonsense() {
    for (which, report) in all() {
        let page = report.to_html().unwrap();
        for (name, text) in tags(&page) {
            for word in ["NaN", "inf", "e+", "E+"] {
                let is_text = name == "rect" && text.contains("onerror");
                assert!(is_text || !text.contains(word), "{which}: <{name} {text}>");
            }
        }
        for text in [page, report.to_table(100)] {
            assert!(!text.contains("NaN"), "{which}");
        }
    }
}

#[test]
fn equal_reports_are_equal_bytes() {
    for (which, report) in all() {
        let json = report.to_json().unwrap();
        let read = Report::from_json(&json).unwrap();
        assert_eq!(read, report.completed(), "{which}");
        assert_eq!(read.to_json().unwrap(), json, "{which}");
        assert_eq!(
            read.to_html().unwrap(),
            report.to_html().unwrap(),
            "{which}"
        );
        assert_eq!(read.to_table(90), report.to_table(90), "{which}");
    }
}

#[test]
fn tables_keep_to_their_width() {
    for (which, report) in all() {
        for width in [0, 40, 57, 80, 100, 1000] {
            let table = report.to_table(width);
            for line in table.lines() {
                let columns = unicode_width::UnicodeWidthStr::width(line);
                assert!(columns <= width.clamp(40, 100), "{which}, {width}: {line}");
            }
            let printable = |c: char| c == '\n' || !c.is_control();
            assert!(table.chars().all(printable), "{which}");
        }
    }
}

#[test]
fn a_large_report_stays_light() {
    let report = samples::large();
    assert!(report.to_html().unwrap().len() < 900_000);
    assert!(report.to_table(100).lines().count() < 100);

    let mut experts = samples::large();
    let layer = experts.layers[1].clone();
    experts.layers = (0..6000)
        .map(|k| Layer {
            name: format!(
                "model.layers.{}.mlp.experts.{}.up_proj.weight",
                k / 100,
                k % 100
            ),
            block: format!("model.layers.{}", k / 100),
            ..layer.clone()
        })
        .collect();
    let page = experts.to_html().unwrap();
    assert!(page.len() < 2_000_000, "{}", page.len());
    assert!(page.contains("The 2000 where most energy is lost"));
}

#[test]
fn json_of_other_versions() {
    assert_eq!(Report::from_json("{}").unwrap(), Report::default());
    let with_more = r#"{"title": "a", "layers": [{"name": "x"}], "of_tomorrow": 1}"#;
    assert_eq!(Report::from_json(with_more).unwrap().title, "a");
    let newer = Report::from_json(r#"{"schema_version": 99}"#).unwrap_err();
    assert!(matches!(newer, Error::Newer { found: 99 }));
    let message = "the report has schema version 99, this version of merganser reads up to 1: \
                   update merganser";
    assert_eq!(newer.to_string(), message);
    let wrong = Report::from_json("[1").unwrap_err().to_string();
    assert!(
        wrong.starts_with("this is not a merganser report in JSON"),
        "{wrong}"
    );
}

#[test]
fn tables() {
    insta::assert_snapshot!("table_small_100", samples::small().to_table(100));
    insta::assert_snapshot!("table_small_60", samples::small().to_table(60));
    insta::assert_snapshot!("table_one_layer", samples::one_layer().to_table(80));
    insta::assert_snapshot!("table_large", samples::large().to_table(100));
    insta::assert_snapshot!("table_hostile", samples::hostile().to_table(80));
}

#[test]
fn json_of_one_layer() {
    insta::assert_snapshot!("json_one_layer", samples::one_layer().to_json().unwrap());
}

/// Every number of a report replaced by numbers that break careless code.
#[test]
fn any_numbers_at_all() {
    let nasty = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::MAX,
        f64::MIN,
        f64::MIN_POSITIVE,
        5e-324,
        0.0,
        -0.0,
        1.0,
        -1.0,
        1e17,
        -1e17,
        0.999_999_999,
    ];
    for start in 0..nasty.len() {
        let mut values = nasty.iter().cycle().skip(start).copied();
        let mut next = || values.next().map(|value| value * 1.0);
        let count = 3;
        let layers = (0..7).map(|k| Layer {
            name: format!("layers.{k}.weight"),
            block: format!("layers.{}", k / 2),
            energy: next(),
            energy_by_task: (0..count).map(|_| next()).collect(),
            captured: [("full", next()), ("task", next()), ("ties", next())]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            captured_by_task: (0..count).map(|_| next()).collect(),
            conflict: next(),
            ridge: next(),
            ..Layer::default()
        });
        let layers = layers.collect();
        let mut score = || Score {
            value: next(),
            low: next(),
            high: next(),
        };
        let method = |name: &str, score: Score| Method {
            accuracy: Some(merganser_report::Accuracy {
                average: score,
                normalised: score,
                tasks: vec![score; count],
            }),
            ..Method::new(name, MethodKind::Merge)
        };
        let methods = ["full", "task", "ties"].map(|name| method(name, score()));
        let individual = methods[0].accuracy.clone();
        let report = Report {
            tasks: ["a", "b", "c"].map(Task::new).into(),
            methods: methods.into(),
            layers,
            pairwise: vec![Pairwise {
                values: vec![vec![next(); count]; count],
                ..Pairwise::default()
            }],
            evaluation: Some(merganser_report::Evaluation {
                base: individual.clone(),
                individual,
                note: None,
            }),
            ..Report::default()
        };
        let page = report.to_html().unwrap();
        assert!(!page.contains("NaN"), "{start}");
        for (name, text) in tags(&page) {
            assert!(!text.contains("inf"), "{start}: <{name} {text}>");
        }
        assert!(!report.to_table(100).contains("NaN"));
        assert!(Report::from_json(&report.to_json().unwrap()).is_ok());
    }
}
