//! Several models and tasks in one table; embeddings.

use merganser_data::Source;
use merganser_eval::{Evaluation, Kind, Loaded, Options, Step, Task, cosines, embed, evaluate};
use serde_json::json;

use crate::support::{Folder, argmax, expected, golden, read, run};

#[test]
fn models_are_compared_on_the_same_samples_and_with_their_references() {
    let folder = Folder::new();
    let mut labels = argmax(&expected("bert", "logits"));
    labels[0] = (labels[0] + 1) % 3;
    let task = Task {
        name: "three".into(),
        reference: Some(golden("bert").display().to_string()),
        ..Task::new(Source::new(folder.labelled("bert", &labels)))
    };
    let other = Task {
        name: "again".into(),
        reference: None,
        ..task.clone()
    };
    let mut model = read(&golden("bert").join("model.safetensors"));
    let bias = model["classifier.bias"].to_vec1::<f32>().unwrap();
    let mut shifted = bias.clone();
    // Every sample is given the class of the first one's label.
    shifted[labels[0] as usize] += 1e4;
    model.insert(
        "classifier.bias".into(),
        candle_core::Tensor::new(shifted, &candle_core::Device::Cpu).unwrap(),
    );
    let shifted = folder.model("shifted", "bert", &model);
    let found = run(&[&golden("bert"), &shifted], &[task, other]).unwrap();

    let [first, second] = &found.tasks[0].scores[..] else {
        panic!()
    };
    assert!((first.value - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(first.difference, None);
    let difference = second.difference.unwrap();
    assert!((difference.value - (second.value - first.value)).abs() < 1e-12);
    let [low, high] = difference.interval.unwrap();
    assert!(low <= difference.value && difference.value <= high);
    assert_eq!(found.averages[0].normalised, Some(1.0));
    assert!((found.averages[1].value.unwrap() - second.value).abs() < 1e-12);
    assert!((found.averages[1].normalised.unwrap() - second.value / first.value).abs() < 1e-12);
    let rows = found.table();
    assert_eq!(rows.len(), 5);
    let text: Vec<String> = rows
        .iter()
        .map(|row| folder.strip(&row.join(" | ")))
        .collect();
    insta::assert_snapshot!(text.join("\n"));
    let json = serde_json::to_string(&found).unwrap();
    let back: Evaluation = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
}

#[test]
fn every_step_is_announced() {
    let folder = Folder::new();
    let labels = argmax(&expected("bert", "logits"));
    let name = golden("bert").display().to_string();
    let task = Task {
        reference: Some(name.clone()),
        ..Task::new(Source::new(folder.labelled("bert", &labels)))
    };
    let open = |name: &str| Loaded::open(name, name.as_ref(), None, u64::MAX);
    let mut seen = Vec::new();
    let mut observe = |step: Step<'_>| seen.push((step.task.to_owned(), step.done, step.of));
    evaluate(
        &[name.clone(), name],
        &[task],
        &Options::default(),
        &open,
        &mut observe,
    )
    .unwrap();
    assert_eq!(
        seen,
        (0..3)
            .map(|done| ("bert".to_owned(), done, 3))
            .collect::<Vec<_>>()
    );
    let error = evaluate(&[], &[], &Options::default(), &open, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "an evaluation needs a model and a task");
}

#[test]
fn similarity_follows_the_order_of_the_cosines() {
    let folder = Folder::new();
    let path = folder.with_tokenizer("minilm");
    let model = Loaded::open("minilm", &path, None, u64::MAX).unwrap();
    let texts: Vec<String> = (0..6)
        .map(|k| format!("w{} w{} w{}", 10 + k, 20 + 2 * k, 30 - k))
        .collect();
    let (vectors, _) = embed(&model, &texts, None, None, 2).unwrap();
    let pairs: Vec<(usize, usize)> = (1..6).map(|k| (0, k)).collect();
    let side = |at: Vec<usize>| merganser_eval::Vectors {
        width: vectors.width,
        values: at.iter().flat_map(|&k| vectors.row(k).to_vec()).collect(),
    };
    let found = cosines(
        &side(pairs.iter().map(|p| p.0).collect()),
        &side(pairs.iter().map(|p| p.1).collect()),
    );
    let score = |sign: f64, name: &str| {
        let lines: Vec<String> = pairs
            .iter()
            .zip(&found)
            .map(|((a, b), cosine)| {
                json!({"a": texts[*a], "b": texts[*b], "gold": sign * cosine.powi(3)}).to_string()
            })
            .collect();
        let task = Task {
            task: Some(Kind::Similarity),
            columns: Some(["a".into(), "b".into()]),
            score: Some("gold".into()),
            ..Task::new(Source::new(folder.file(name, &lines.join("\n"))))
        };
        run(&[&path], &[task]).unwrap().tasks[0].scores[0].value
    };
    assert!((score(1.0, "up.jsonl") - 1.0).abs() < 1e-12);
    assert!((score(-1.0, "down.jsonl") + 1.0).abs() < 1e-12);
}

#[test]
fn a_query_that_is_its_passage_is_found_first() {
    let folder = Folder::new();
    let path = folder.with_tokenizer("minilm");
    let lines: Vec<String> = (0..8)
        .map(|k| {
            let text = format!("w{} w{} w{}", 5 + k, 50 - 3 * k, 20 + k);
            json!({"query": text, "passage": text}).to_string()
        })
        .collect();
    let data = Source::new(folder.file("pairs.jsonl", &lines.join("\n")));
    let task = Task {
        task: Some(Kind::Retrieval),
        ..Task::new(data)
    };
    let found = run(&[&path], std::slice::from_ref(&task)).unwrap();
    let score = &found.tasks[0].scores[0];
    assert_eq!((score.value, score.samples), (1.0, 8));
    let also: Vec<(&str, f64)> = score
        .also
        .iter()
        .map(|(name, x)| (name.as_str(), *x))
        .collect();
    assert_eq!(
        also,
        [("passages", 8.0), ("recall@10", 1.0), ("recall@5", 1.0)]
    );
    assert_eq!(found.tasks[0].metric.name(), "recall@1");
    let error = run(
        &[&path],
        &[Task {
            k: vec![0],
            ..task.clone()
        }],
    )
    .unwrap_err();
    assert!(error.to_string().contains("k must be at least 1"));
    let error = run(
        &[&path],
        &[Task {
            columns: Some(["query".into(), "answer".into()]),
            ..task
        }],
    )
    .unwrap_err();
    assert!(
        folder.strip(&error.to_string()).contains(
            "there is no column `answer`; its columns are `query (string)`, `passage (string)`"
        ),
        "{error}"
    );
}
