//! Perplexity of language models.

use merganser_data::Source;
use merganser_eval::{Kind, Task, likelihood};
use merganser_model::Modality;

use crate::support::{Folder, expected, golden, inputs, open, read, run};

/// Σ −log p of each sample and its tokens, from PyTorch's logits, in f64.
fn from_logits(name: &str) -> Vec<(f64, f64)> {
    let logits = expected(name, "logits").to_vec3::<f32>().unwrap();
    let inputs = read(&golden(name).join("inputs.safetensors"));
    let ids = inputs["input_ids"].to_vec2::<i64>().unwrap();
    let mask = inputs["attention_mask"].to_vec2::<i64>().unwrap();
    let sample = |at: usize| {
        let real: Vec<usize> = (0..ids[at].len()).filter(|&k| mask[at][k] == 1).collect();
        let costs = real.windows(2).map(|pair| {
            let row = &logits[at][pair[0]];
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            sum.ln() - f64::from(row[ids[at][pair[1]] as usize])
        });
        (costs.sum(), real.len() as f64 - 1.0)
    };
    (0..ids.len()).map(sample).collect()
}

#[test]
fn likelihoods_are_those_of_torchs_logits() {
    for name in ["gpt2", "llama", "qwen2", "gemma2"] {
        let model = open(&golden(name));
        let network = model.network(Modality::Text).unwrap();
        for batch_size in [1, 3] {
            let found = likelihood(&network, &model, &inputs(name), batch_size).unwrap();
            for (at, (nll, tokens)) in from_logits(name).into_iter().enumerate() {
                assert_eq!(found.tokens[at], tokens);
                assert!(
                    (found.nll[at] - nll).abs() <= 1e-3 * nll,
                    "{name} {at}: {} {nll}",
                    found.nll[at]
                );
            }
        }
    }
}

#[test]
fn perplexity_is_chosen_for_causal_models_and_weighs_tokens() {
    let task = Task::new(Source::new(golden("gpt2").join("inputs.safetensors")));
    let found = run(&[&golden("gpt2")], &[task]).unwrap();
    let all = from_logits("gpt2");
    let (nll, tokens) = all.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
    let score = &found.tasks[0].scores[0];
    assert!((score.value / (nll / tokens).exp() - 1.0).abs() < 1e-3);
    let [low, high] = score.interval.unwrap();
    assert!(low < score.value && score.value < high);
    assert_eq!(found.averages[0].value, None);
}

#[test]
fn models_that_see_what_they_would_predict_have_no_perplexity() {
    for (name, expected) in [
        ("bert_mlm", "this one sees the tokens it would predict"),
        ("minilm", "this checkpoint has none"),
    ] {
        let task = Task {
            task: Some(Kind::Perplexity),
            ..Task::new(Source::new(golden(name).join("inputs.safetensors")))
        };
        let error = run(&[&golden(name)], &[task]).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    let task = Task::new(Source::new(golden("minilm").join("inputs.safetensors")));
    let error = run(&[&golden("minilm")], &[task]).unwrap_err().to_string();
    assert!(
        error.contains("what is to be measured is not clear"),
        "{error}"
    );
}

#[test]
fn a_corpus_is_scored_in_windows() {
    let folder = Folder::new();
    let path = folder.with_tokenizer("gpt2");
    let data = folder.file("corpus.txt", "w3 w4 w5 w6\nw7 w8 w9\nw10 w11 w12 w13\n");
    let score = |concat, data: &std::path::Path| {
        let task = Task {
            concat,
            max_length: Some(4),
            ..Task::new(Source::new(data))
        };
        let found = run(&[&path], &[task]).unwrap();
        found.tasks[0].scores[0].clone()
    };
    let joined = score(true, &data);
    assert_eq!((joined.samples, joined.also["tokens"]), (3, 8.0));
    // The same windows as rows of their own.
    let rows = folder.file("rows.txt", "w3 w4 w5 w6\nw7 w8 w9 w10\nw11 w12 w13\n");
    assert_eq!(score(false, &rows).value, joined.value);
    assert_ne!(score(false, &data).value, joined.value);
}
