//! Adapters and task vectors: out of fine-tunes, and onto their bases again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merganser_testkit::{Dtype, Random, Tensor, checkpoint, golden as kit};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::models::{self, golden, input};
use crate::program::{self, Run};

type Tensors = BTreeMap<String, Tensor>;

fn merganser(dir: &Path, args: &[&str]) -> Run {
    program::run(dir, args.iter().copied())
}

fn config_of(adapter: &Path) -> Value {
    let text = fs::read_to_string(adapter.join("adapter_config.json")).expect("a configuration");
    serde_json::from_str(&text).expect("JSON")
}

fn adapter(folder: &Path) -> Tensors {
    kit::read_safetensors(&folder.join("adapter_model.safetensors"))
}

/// B·A of a module of an adapter, with its rank.
fn product(tensors: &Tensors, module: &str) -> (Vec<f64>, usize) {
    let factor = |part: &str| &tensors[&format!("base_model.model.{module}.{part}.weight")];
    let (a, b) = (factor("lora_A"), factor("lora_B"));
    let (rank, n, m) = (a.shape[0], a.shape[1], b.shape[0]);
    assert_eq!(b.shape[1], rank, "{module}");
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for k in 0..rank {
            for j in 0..n {
                out[i * n + j] += b.values[i * rank + k] * a.values[k * n + j];
            }
        }
    }
    (out, rank)
}

fn modules(tensors: &Tensors) -> Vec<String> {
    let factors = tensors.keys().filter_map(|name| {
        let module = name.strip_suffix(".lora_A.weight")?;
        module.strip_prefix("base_model.model.").map(str::to_owned)
    });
    factors.collect()
}

/// ‖a − b‖ / ‖b − c‖ over the tensors that `which` chooses.
fn off(a: &Tensors, b: &Tensors, c: &Tensors, which: impl Fn(&str) -> bool) -> f64 {
    let (mut rest, mut total) = (0.0, 0.0);
    for (name, ours) in a.iter().filter(|(name, _)| which(name)) {
        for ((x, y), z) in ours.values.iter().zip(&b[name].values).zip(&c[name].values) {
            rest += (x - y).powi(2);
            total += (y - z).powi(2);
        }
    }
    (rest / total).sqrt()
}

#[test]
fn the_golden_adapter_of_mergekit() {
    let case = golden().join("open/extract_lora-01-rank4");
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("out");
    let out_text = out.to_string_lossy();
    let (fine, base) = ("./inputs/llama-ft3", "./inputs/llama-base");
    let args = [
        "extract",
        "lora",
        fine,
        base,
        "-o",
        &out_text,
        "--max-rank",
        "4",
    ];
    merganser(&golden(), &args).done();
    let (ours, theirs) = (adapter(&out), adapter(&case.join("expected")));
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    for module in modules(&theirs) {
        let ((ours, rank), (theirs, expected)) =
            (product(&ours, &module), product(&theirs, &module));
        assert_eq!(rank, expected, "{module}");
        for (x, y) in ours.iter().zip(&theirs) {
            assert!((x - y).abs() <= 2e-6, "{module}: {x} instead of {y}");
        }
    }
    for (name, theirs) in theirs.iter().filter(|(name, _)| !name.contains("lora_")) {
        assert_eq!(&ours[name], theirs, "{name}");
    }
    let (ours, theirs) = (config_of(&out), config_of(&case.join("expected")));
    for key in [
        "base_model_name_or_path",
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "use_rslora",
    ] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }
    for key in ["target_modules", "modules_to_save"] {
        let sorted = |value: &Value| {
            let mut words: Vec<String> = serde_json::from_value(value.clone()).expect("a list");
            words.sort();
            words
        };
        assert_eq!(sorted(&ours[key]), sorted(&theirs[key]), "{key}");
    }
}

/// A Llama of `layers` layers and a fine-tune with an update of the given rank in every matrix of a layer; rank 0 leaves
/// it as it is. Nothing else differs.
fn low_rank_pair(folder: &Path, seed: u64, dtype: Dtype, rank: impl Fn(&str) -> usize) {
    let (hidden, layers, rows) = (24, 2, 50);
    let mut random = Random::new(seed);
    let mut base = Vec::new();
    let mut fine = Vec::new();
    for (name, shape) in models::llama(hidden, layers, rows) {
        let weights = random.normals(shape.iter().product(), 0.05);
        let mut changed = weights.clone();
        if let [m, n] = shape[..] {
            for _ in 0..rank(&name) {
                let (u, v) = (random.normals(m, 0.05), random.normals(n, 0.05));
                for (k, x) in changed.iter_mut().enumerate() {
                    *x += u[k / n] * v[k % n];
                }
            }
        }
        base.push((name.clone(), shape.clone(), weights));
        fine.push((name, shape, changed));
    }
    let config = models::config(hidden, layers, rows);
    for (folder, tensors) in [(folder.join("base"), base), (folder.join("fine"), fine)] {
        let entries: Vec<checkpoint::Entry<'_>> = tensors
            .iter()
            .map(|(name, shape, values)| (name.as_str(), dtype, shape.clone(), values.clone()))
            .collect();
        checkpoint::write(&folder, &config, &entries);
    }
}

#[test]
fn an_update_of_low_rank_comes_back_exactly() {
    for seed in 0..4 {
        let dir = tempfile::tempdir().expect("a folder");
        let rank = |name: &str| match name {
            _ if !name.contains("layers") || name.contains("k_proj") => 0,
            "model.layers.1.mlp.up_proj.weight" => 0,
            _ if name.contains("down_proj") => 3,
            _ => 2 + seed as usize,
        };
        low_rank_pair(dir.path(), seed, Dtype::F32, rank);
        let run = merganser(
            dir.path(),
            &["extract", "lora", "fine", "base", "-o", "out", "--json"],
        )
        .done();
        let config = config_of(&dir.path().join("out"));
        let most = 3.max(2 + seed as usize);
        assert_eq!(
            (&config["r"], &config["lora_alpha"]),
            (&json!(most), &json!(most))
        );
        assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
        assert_eq!(config["modules_to_save"], Value::Null);
        let targets: Vec<String> =
            serde_json::from_value(config["target_modules"].clone()).expect("a list");
        // One of the two layers' `up_proj` did not change, so its last word would mean too much.
        let expected = [
            "down_proj",
            "gate_proj",
            "model.layers.0.mlp.up_proj",
            "o_proj",
            "q_proj",
            "v_proj",
        ];
        assert_eq!(targets, expected);
        let found = adapter(&dir.path().join("out"));
        assert_eq!(modules(&found).len(), 11);
        for module in modules(&found) {
            let weight = format!("{module}.weight");
            assert_eq!(product(&found, &module).1, rank(&weight), "{module}");
            let expected = &config["rank_pattern"][&module];
            let listed = expected.as_u64().map_or(most, |rank| rank as usize);
            assert_eq!(listed, rank(&weight), "{module}");
        }
        let event = run.events().pop().expect("an event");
        assert!(
            event["relative_error"].as_f64().expect("a number") < 1e-5,
            "{event}"
        );
        assert_eq!(event["modules"].as_array().expect("a list").len(), 11);

        merganser(dir.path(), &["apply", "base", "out", "-o", "again"]).done();
        let read = |name: &str| models::read(&dir.path().join(name));
        let (again, fine, base) = (read("again"), read("fine"), read("base"));
        let all = |_: &str| true;
        assert!(off(&again, &fine, &base, all) < 1e-5);
    }
}

#[test]
fn a_model_that_was_extracted_and_applied_is_off_by_what_was_reported() {
    for (fine, base, options) in [
        ("llama-ft1", "llama-base", &["--rank", "6"][..]),
        (
            "llama-ft1",
            "llama-base",
            &["--energy", "0.8", "--no-distribute-scale"],
        ),
        ("gpt2-ft1", "gpt2-ft2", &["--rank", "5"]),
        ("bert-ft1", "bert-base", &["--sigma", "0.05"]),
        (
            "qwen2-ft1",
            "qwen2-ft2",
            &["--rank", "7", "--dtype", "bfloat16"],
        ),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let (fine, base) = (input(fine), input(base));
        let (f, b) = (fine.to_string_lossy(), base.to_string_lossy());
        let args = [&["extract", "lora", &*f, &*b, "-o", "a", "--json"], options].concat();
        let event = merganser(dir.path(), &args).done().events().pop();
        let event = event.expect("an event");
        merganser(dir.path(), &["apply", &b, "a", "-o", "m"]).done();
        let (again, fine, base) = (
            models::read(&dir.path().join("m")),
            models::read(&fine),
            models::read(&base),
        );
        let listed = event["modules"].as_array().expect("a list").clone();
        for module in listed {
            let name = format!("{}.weight", module["module"].as_str().expect("a name"));
            let reported = module["relative_error"].as_f64().expect("a number");
            let found = off(&again, &fine, &base, |other| other == name);
            assert!(
                (found - reported).abs() <= 1e-3 * reported + 1e-6,
                "{name}: {found}, and {reported} was reported"
            );
        }
        // Everything else comes back as it was, to the rounding of the type asked for.
        let tolerance = if options.contains(&"bfloat16") {
            1e-2
        } else {
            1e-6
        };
        let saved: Vec<String> = serde_json::from_value(event["saved"].clone()).expect("a list");
        let carried: Vec<String> = serde_json::from_value(event["biases"].clone()).expect("a list");
        for name in saved.iter().chain(&carried) {
            for (x, y) in again[name].values.iter().zip(&fine[name].values) {
                assert!((x - y).abs() <= tolerance * y.abs().max(0.1), "{name}");
            }
        }
    }
}

#[test]
fn what_is_written_does_not_depend_on_threads_or_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let (fine, base) = (input("llama64-bf16-ft1"), input("llama64-bf16-base"));
    let (fine, base) = (fine.to_string_lossy(), base.to_string_lossy());
    for (out, options) in [
        ("one", &["-j", "1"][..]),
        ("many", &["-j", "5"]),
        ("tight", &["-j", "3", "--memory", "600KiB"]),
    ] {
        let args = [&["extract", "lora", &*fine, &*base, "-o", out], options].concat();
        merganser(dir.path(), &args).done();
    }
    for file in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "merganser.json",
    ] {
        let read = |out: &str| fs::read(dir.path().join(out).join(file)).expect("a file");
        assert_eq!(read("one"), read("many"), "{file}");
        assert_eq!(read("one"), read("tight"), "{file}");
    }
    let args = [
        "extract", "lora", &fine, &base, "-o", "small", "--memory", "8KiB",
    ];
    let run = merganser(dir.path(), &args).failed();
    assert!(
        run.stderr.contains("--memory 8.0 KiB is too small"),
        "{}",
        run.stderr
    );
    assert!(!dir.path().join("small").exists());
}

#[test]
fn an_interrupted_extraction_goes_on_where_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let names: Vec<String> = (0..40).map(|i| format!("layers.{i}.fc.weight")).collect();
    let shape: &[usize] = &[220, 200];
    // One of them does not change.
    let rank = |name: &str| if name.contains(".7.") { 0 } else { 9 };
    let mut tensors: Vec<(&str, &[usize], usize)> = names
        .iter()
        .map(|name| (name.as_str(), shape, rank(name)))
        .collect();
    tensors.push(("norm.weight", &[30], 1));
    changed_pair(dir.path(), 11, &tensors);
    let args = |out: &'static str, rank: &'static str| {
        let fixed = ["extract", "lora", "fine", "base", "-o", out, "--rank", rank];
        [&fixed[..], &["-j", "2", "--json"]].concat()
    };
    let begin = |out: &'static str| {
        let mut command = program::merganser();
        command.current_dir(dir.path()).args(args(out, "12"));
        let folder = dir.path().join(out);
        assert!(
            program::interrupt(command, || program::finished_tensors(&folder) >= 6),
            "the extraction was over before it could be killed"
        );
        assert_eq!(models::names(&folder), [".partial-merganser"]);
        let done = program::finished_tensors(&folder);
        assert!((6..40).contains(&done), "{done} matrices were finished");
        done
    };
    let reused = |out: &'static str, rank: &'static str| {
        let events = merganser(dir.path(), &args(out, rank)).done().events();
        let started = events.iter().find(|event| event["event"] == "started");
        let started = started.expect("an event").clone();
        let count = |key: &str| started[key].as_u64().expect("a number") as usize;
        assert_eq!(count("tensors") + count("reused"), 40);
        count("reused")
    };
    assert_eq!(reused("whole", "12"), 0);
    let done = begin("cut");
    assert_eq!(reused("cut", "12"), done);
    let all = |out: &str| {
        let folder = dir.path().join(out);
        let names = models::names(&folder);
        let read = |name: &String| fs::read(folder.join(name)).expect("a file");
        names
            .iter()
            .map(|name| (name.clone(), read(name)))
            .collect::<Vec<_>>()
    };
    assert!(all("whole") == all("cut"), "the files differ");

    // What was damaged is made again, what belongs to other settings too.
    let done = begin("torn");
    let factors = dir.path().join("torn/.partial-merganser/factors");
    let torn = models::names(&factors)[0].clone();
    let mut bytes = fs::read(factors.join(&torn)).expect("factors");
    bytes[60] ^= 4;
    fs::write(factors.join(&torn), bytes).expect("a file");
    assert_eq!(reused("torn", "12"), done - 1);
    assert!(all("whole") == all("torn"), "the files differ");
    begin("other");
    assert_eq!(reused("other", "3"), 0);
    assert_eq!(config_of(&dir.path().join("other"))["r"], 3);
}

#[test]
fn modules_are_chosen_by_expressions() {
    let dir = tempfile::tempdir().expect("a folder");
    low_rank_pair(dir.path(), 5, Dtype::F32, |_| 2);
    let args = [
        "extract",
        "lora",
        "fine",
        "base",
        "-o",
        "out",
        "-i",
        "self_attn",
        "-e",
        r"layers\.1",
        "--json",
    ];
    let event = merganser(dir.path(), &args)
        .done()
        .events()
        .pop()
        .expect("an event");
    let expected = ["k", "o", "q", "v"].map(|x| format!("model.layers.0.self_attn.{x}_proj"));
    assert_eq!(modules(&adapter(&dir.path().join("out"))), expected);
    assert!(
        event["notes"]
            .to_string()
            .contains("left out as --include and --exclude say")
    );
}

/// Writes two models of the given tensors: `base`, and `fine` with an update of the given rank in each of them, as matrices
/// of outputs × all else. A tensor without dimensions is a whole number, the same in both.
fn changed_pair(folder: &Path, seed: u64, tensors: &[(&str, &[usize], usize)]) {
    let mut random = Random::new(seed);
    let (mut base, mut fine) = (Vec::new(), Vec::new());
    for (name, shape, rank) in tensors {
        let Some((&m, rest)) = shape.split_first() else {
            base.push((*name, Dtype::I64, vec![], vec![7.0]));
            fine.push((*name, Dtype::I64, vec![], vec![7.0]));
            continue;
        };
        let weights = random.normals(shape.iter().product(), 0.05);
        let mut changed = weights.clone();
        let n: usize = rest.iter().product();
        for _ in 0..*rank {
            let (u, v) = (random.normals(m, 0.05), random.normals(n, 0.05));
            for (k, x) in changed.iter_mut().enumerate() {
                *x += u[k / n] * v[k % n];
            }
        }
        base.push((*name, Dtype::F32, shape.to_vec(), weights));
        fine.push((*name, Dtype::F32, shape.to_vec(), changed));
    }
    let config = json!({ "model_type": "mine" });
    checkpoint::write(&folder.join("base"), &config, &base);
    checkpoint::write(&folder.join("fine"), &config, &fine);
}

#[test]
fn a_module_is_saved_with_all_that_is_in_it() {
    let dir = tempfile::tempdir().expect("a folder");
    changed_pair(
        dir.path(),
        5,
        &[
            ("bn.bias", &[6], 0),
            ("bn.num_batches_tracked", &[], 0),
            ("bn.running_mean", &[6], 0),
            ("bn.weight", &[6], 1),
            ("emb.cls_token", &[1, 1, 6], 1),
            ("emb.proj.bias", &[6], 0),
            ("emb.proj.weight", &[6, 5], 0),
            ("fc1.weight", &[4, 6], 2),
            ("fc2.bias", &[4], 1),
            ("fc2.weight", &[4, 6], 0),
            ("norm.weight", &[6], 0),
        ],
    );
    let args = ["extract", "lora", "fine", "base", "-o", "out", "--json"];
    let event = merganser(dir.path(), &args).done().events().pop();
    let event = event.expect("an event");
    // PEFT looks for every tensor of a saved module.
    let names = [
        "bn.bias",
        "bn.num_batches_tracked",
        "bn.running_mean",
        "bn.weight",
        "emb.cls_token",
        "emb.proj.bias",
        "emb.proj.weight",
        "fc2.bias",
        "fc2.weight",
    ];
    let mut saved: Vec<String> = serde_json::from_value(event["saved"].clone()).expect("a list");
    saved.sort();
    assert_eq!(saved, names);
    assert_eq!(event["unchanged"], 1);
    let config = config_of(&dir.path().join("out"));
    assert_eq!(config["modules_to_save"], json!(["bn", "emb", "fc2"]));
    assert!(
        !event["notes"]
            .to_string()
            .contains("is saved whole without")
    );
    let args = [
        "extract", "lora", "fine", "base", "-o", "half", "-e", "emb.proj", "--json",
    ];
    let half = merganser(dir.path(), &args).done().events().pop();
    let notes = half.expect("an event")["notes"].to_string();
    assert!(
        notes.contains("'emb' is saved whole without 'emb.proj'"),
        "{notes}"
    );
    merganser(dir.path(), &["apply", "base", "out", "-o", "again"]).done();
    let [again, fine, base] = ["again", "fine", "base"].map(|x| models::read(&dir.path().join(x)));
    assert!(off(&again, &fine, &base, |_| true) < 1e-6);
}

/// Outputs and inputs of a module, as a finished extraction reports them.
fn shape_of(event: &Value, module: &str) -> Value {
    let modules = event["modules"].as_array().expect("a list");
    let found = modules.iter().find(|found| found["module"] == module);
    found.expect("a module")["shape"].clone()
}

#[test]
fn convolutions_come_back_as_factors_of_kernels() {
    let dir = tempfile::tempdir().expect("a folder");
    changed_pair(
        dir.path(),
        3,
        &[
            ("stem.conv.weight", &[6, 3, 2, 2], 2),
            ("stem.conv.bias", &[6], 1),
            ("enc.conv1.weight", &[5, 4, 3], 3),
            ("video.proj.weight", &[4, 3, 2, 2, 2], 1),
            ("blocks.0.dwconv.weight", &[6, 1, 3, 3], 1),
            ("blocks.0.same.conv.weight", &[2, 2, 3, 3], 0),
            ("blocks.0.fc.weight", &[4, 6], 2),
        ],
    );
    let args = ["extract", "lora", "fine", "base", "-o", "out", "--json"];
    let event = merganser(dir.path(), &args).done().events().pop();
    let event = event.expect("an event");
    let found = adapter(&dir.path().join("out"));
    let shapes: Vec<(&str, &[usize])> = found
        .iter()
        .map(|(name, tensor)| {
            let name = name.strip_prefix("base_model.model.").expect("a prefix");
            (name, tensor.shape.as_slice())
        })
        .collect();
    let expected: [(&str, &[usize]); 10] = [
        ("blocks.0.dwconv.weight", &[6, 1, 3, 3]),
        ("blocks.0.fc.lora_A.weight", &[2, 6]),
        ("blocks.0.fc.lora_B.weight", &[4, 2]),
        ("enc.conv1.lora_A.weight", &[3, 4, 3]),
        ("enc.conv1.lora_B.weight", &[5, 3, 1]),
        ("stem.conv.lora_A.weight", &[2, 3, 2, 2]),
        ("stem.conv.lora_B.bias", &[6]),
        ("stem.conv.lora_B.weight", &[6, 2, 1, 1]),
        ("video.proj.lora_A.weight", &[1, 3, 2, 2, 2]),
        ("video.proj.lora_B.weight", &[4, 1, 1, 1, 1]),
    ];
    assert_eq!(shapes, expected);
    let config = config_of(&dir.path().join("out"));
    assert_eq!(config["r"], 3);
    assert_eq!(config["rank_pattern"]["stem.conv"], 2);
    assert_eq!(config["modules_to_save"], json!(["dwconv"]));
    let error = event["relative_error"].as_f64().expect("a number");
    assert!(error < 1e-6, "{event}");
    assert_eq!(shape_of(&event, "enc.conv1"), json!([5, 12]));
    let notes = event["notes"].to_string();
    assert!(
        notes.contains("the factors of enc.conv1, stem.conv, video.proj are those of convolutions"),
        "{notes}"
    );
    merganser(dir.path(), &["apply", "base", "out", "-o", "again"]).done();
    let [again, fine, base] = ["again", "fine", "base"].map(|x| models::read(&dir.path().join(x)));
    assert!(off(&again, &fine, &base, |_| true) < 1e-6);
}

#[test]
fn embeddings_and_heads_get_factors_if_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let up = "model.layers.1.mlp.up_proj.weight";
    changed_pair(
        dir.path(),
        8,
        &[
            ("model.embed_tokens.weight", &[50, 24], 3),
            ("model.layers.0.self_attn.q_proj.weight", &[24, 24], 1),
            ("model.layers.0.mlp.up_proj.weight", &[48, 24], 0),
            (up, &[48, 24], 0),
            ("model.norm.weight", &[24], 0),
            ("lm_head.weight", &[50, 24], 2),
        ],
    );
    let extract = |out: &str, options: &[&str]| {
        let args = [
            &["extract", "lora", "fine", "base", "-o", out, "--json"],
            options,
        ]
        .concat();
        let event = merganser(dir.path(), &args).done().events().pop();
        event.expect("an event")
    };
    let event = extract("out", &["--embed-lora"]);
    let found = adapter(&dir.path().join("out"));
    let shape = |name: &str| found[&format!("base_model.model.{name}")].shape.clone();
    assert_eq!(shape("model.embed_tokens.lora_embedding_A"), [3, 50]);
    assert_eq!(shape("model.embed_tokens.lora_embedding_B"), [24, 3]);
    assert_eq!(shape("lm_head.lora_A.weight"), [2, 24]);
    assert_eq!(shape("lm_head.lora_B.weight"), [50, 2]);
    let config = config_of(&dir.path().join("out"));
    assert_eq!(config["modules_to_save"], Value::Null);
    assert_eq!(config["r"], 3);
    assert_eq!(
        config["target_modules"],
        json!(["embed_tokens", "lm_head", "q_proj"])
    );
    assert_eq!(event["saved"], json!([]));
    assert_eq!(shape_of(&event, "model.embed_tokens"), json!([24, 50]));
    merganser(dir.path(), &["apply", "base", "out", "-o", "again"]).done();
    let [again, fine, base] = ["again", "fine", "base"].map(|x| models::read(&dir.path().join(x)));
    assert!(off(&again, &fine, &base, |_| true) < 1e-5);
    // Merges of adapters and recipes read what was written.
    let recipe = "merge_method: peft\noutput: adapter\nmodels:\n  - model: ./out\n";
    fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
    merganser(dir.path(), &["merge", "recipe.yml", "merged"]).done();

    // Modules by name: changed or not, and whatever the filter says.
    let event = extract(
        "saved",
        &[
            "--embed-lora",
            "--save-module",
            "lm_head",
            "--save-module",
            "model.layers.1.mlp.up_proj",
            "-i",
            "q_proj|embed",
        ],
    );
    assert_eq!(event["saved"], json!(["lm_head.weight", up]));
    let config = config_of(&dir.path().join("saved"));
    assert_eq!(
        config["modules_to_save"],
        json!(["lm_head", "model.layers.1.mlp.up_proj"])
    );
    merganser(dir.path(), &["apply", "base", "saved", "-o", "from-saved"]).done();
    let again = models::read(&dir.path().join("from-saved"));
    assert!(off(&again, &fine, &base, |_| true) < 1e-5);
    let args = ["extract", "lora", "fine", "base", "-o", "none"];
    let said = merganser(
        dir.path(),
        &[&args[..], &["--save-module", "proj"]].concat(),
    )
    .refused();
    assert!(
        said.stderr
            .contains("base has no module 'proj' to be saved whole"),
        "{}",
        said.stderr
    );
    // PEFT loads no biases of second factors beside factors of embeddings.
    let (fine, base) = (input("bert-ft1"), input("bert-base"));
    let (fine, base) = (fine.to_string_lossy(), base.to_string_lossy());
    let args = [
        "extract",
        "lora",
        &*fine,
        &*base,
        "-o",
        "none",
        "--embed-lora",
    ];
    let said = merganser(dir.path(), &args).refused();
    assert!(
        said.stderr.contains("leave out --embed-lora"),
        "{}",
        said.stderr
    );
    assert!(!dir.path().join("none").exists());
}

#[test]
fn a_head_tied_to_a_changed_embedding_is_remarked_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let (fine, base) = (input("llama64-bf16-ft1"), input("llama64-bf16-base"));
    let (fine, base) = (fine.to_string_lossy(), base.to_string_lossy());
    for (options, expected) in [
        (&[][..], true),
        (&["--embed-lora"], true),
        (&["-e", "embed"], false),
    ] {
        let args = [
            &[
                "extract",
                "lora",
                &*fine,
                &*base,
                "-o",
                "out",
                "--overwrite",
                "--json",
            ],
            options,
        ]
        .concat();
        let event = merganser(dir.path(), &args).done().events().pop();
        let notes = event.expect("an event")["notes"].to_string();
        assert_eq!(
            notes.contains("tie their output head to 'model.embed_tokens.weight'"),
            expected,
            "{notes}"
        );
    }
    let args = [
        "extract",
        "lora",
        &*fine,
        &*base,
        "-o",
        "both",
        "--save-module",
        "lm_head",
        "--json",
    ];
    let event = merganser(dir.path(), &args).done().events().pop();
    let event = event.expect("an event");
    assert!(event["saved"].to_string().contains("lm_head.weight"));
    assert!(
        !event["notes"].to_string().contains("tie their output head"),
        "{event}"
    );
    let saved = adapter(&dir.path().join("both"));
    let of = |name: &str| &saved[&format!("base_model.model.{name}.weight")];
    assert_eq!(of("lm_head"), of("model.embed_tokens"));
    merganser(dir.path(), &["apply", &base, "both", "-o", "untied"]).done();
    let untied = models::read(&dir.path().join("untied"));
    assert_eq!(
        untied["lm_head.weight"],
        untied["model.embed_tokens.weight"]
    );
}

/// The message by which an extraction is refused; nothing may have been written.
#[track_caller]
fn refused(dir: &TempDir, args: &[&str]) -> String {
    let run = merganser(dir.path(), args).refused();
    assert!(!dir.path().join("out").exists(), "something was written");
    run.stderr
}

#[test]
fn models_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| input(name).to_string_lossy().into_owned();
    let (llama, bert, ext) = (path("llama-base"), path("bert-base"), path("llama-ext"));
    low_rank_pair(dir.path(), 1, Dtype::F32, |_| 2);
    let small = |name: &str, tensors: &[checkpoint::Entry<'_>]| {
        checkpoint::write(
            &dir.path().join(name),
            &json!({ "model_type": "llama" }),
            tensors,
        );
    };
    let norm = |x: f32| ("model.norm.weight", Dtype::F32, vec![2], vec![x; 2]);
    let q = |x: f32| {
        (
            "model.layers.0.q_proj.weight",
            Dtype::F32,
            vec![2, 2],
            vec![x; 4],
        )
    };
    let steps = |x: f32| ("model.layers.0.steps", Dtype::I64, vec![1], vec![x]);
    let scale = |x: f32| ("logit_scale", Dtype::F32, vec![], vec![x]);
    small("plain", &[norm(1.0), q(1.0), steps(1.0), scale(1.0)]);
    small("norm", &[norm(2.0), q(1.0), steps(1.0), scale(1.0)]);
    small("steps", &[norm(1.0), q(2.0), steps(2.0), scale(1.0)]);
    small("scale", &[norm(1.0), q(2.0), steps(1.0), scale(2.0)]);
    small("nan", &[norm(1.0), q(f32::NAN), steps(1.0), scale(1.0)]);
    small("less", &[norm(1.0), steps(1.0), scale(1.0)]);
    for (fine, base, options, expected) in [
        (&*bert, &*llama, &[][..], "is a llama model and"),
        (&*ext, &*llama, &[], "has shape [92, 32]"),
        ("fine", &*llama, &[], "tensor '"),
        (
            "base",
            "base",
            &[],
            "base and base are equal: there is nothing to extract",
        ),
        ("fine", "nowhere", &[], "cannot open model nowhere"),
        ("./inputs", "base", &[], "cannot open model ./inputs"),
        ("a+b+c", "base", &[], "'a+b+c' names no model"),
        (
            "norm",
            "plain",
            &[],
            "no matrix of a layer differs between norm and plain, only 1 tensors",
        ),
        (
            "steps",
            "plain",
            &[],
            "whole numbers or switches of plain: model.layers.0.steps",
        ),
        ("scale", "plain", &[], "belong to no module: logit_scale"),
        (
            "nan",
            "plain",
            &[],
            "'model.layers.0.q_proj.weight' of nan holds NaN or infinity",
        ),
        (
            "less",
            "plain",
            &[],
            "less lacks tensors of plain: model.layers.0.q_proj.weight",
        ),
        (
            "fine",
            "base",
            &["-e", "layers|embed"],
            "equal among the modules that --include",
        ),
        (
            "fine",
            "base",
            &["--sigma", "1e9"],
            "no direction of any changed matrix is kept",
        ),
        (
            "fine",
            "base",
            &["--energy", "2"],
            "the energy to be kept is 2",
        ),
        ("fine", "base", &["--rank", "0"], "the rank is 0"),
        ("fine", "base", &["-i", "("], "'(' is no regular expression"),
        (
            "fine",
            "base",
            &["--dtype", "int8"],
            "'int8' is no type of real numbers",
        ),
    ] {
        let args = [&["extract", "lora", fine, base, "-o", "out"], options].concat();
        let said = refused(&dir, &args);
        assert!(said.contains(expected), "{fine} {base}: {said}");
    }
    let scale_alone = [
        "extract", "lora", "scale", "plain", "-o", "left", "-e", "^$",
    ];
    merganser(dir.path(), &scale_alone).done();
}

#[test]
fn what_is_there_is_replaced_only_if_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    low_rank_pair(dir.path(), 1, Dtype::BF16, |_| 1);
    let folder = dir.path().join("out");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("adapter_model.bin"), "old").expect("a file");
    for args in [
        &["extract", "lora", "fine", "base", "-o", "out"][..],
        &["extract", "task-vector", "fine", "base", "-o", "out"],
    ] {
        let run = merganser(dir.path(), args).failed();
        assert!(run.stderr.contains("adapter_model.bin"), "{}", run.stderr);
        assert_eq!(models::names(&folder), ["adapter_model.bin"]);
    }
    let args = [
        "extract",
        "lora",
        "fine",
        "base",
        "-o",
        "out",
        "--overwrite",
    ];
    merganser(dir.path(), &args).done();
    let names = [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "merganser.json",
    ];
    assert_eq!(models::names(&folder), names);
}

#[test]
fn a_task_vector_comes_back_and_can_be_weighted() {
    let dir = tempfile::tempdir().expect("a folder");
    let (ft1, ft2, base) = (
        input("llama64-bf16-ft1"),
        input("llama64-bf16-ft2"),
        input("llama64-bf16-base"),
    );
    let (f1, f2, b) = (
        ft1.to_string_lossy(),
        ft2.to_string_lossy(),
        base.to_string_lossy(),
    );
    let shard = ["--out-shard-size", "100000"];
    let args = [
        &["extract", "task-vector", &*f1, &*b, "-o", "tv1"],
        &shard[..],
    ]
    .concat();
    merganser(dir.path(), &args).done();
    assert!(dir.path().join("tv1/model.safetensors.index.json").exists());
    merganser(
        dir.path(),
        &[
            "extract",
            "task-vector",
            &f2,
            &b,
            "-o",
            "tv2",
            "--dtype",
            "bfloat16",
        ],
    )
    .done();
    let tv2 = models::read(&dir.path().join("tv2"));
    assert!(tv2.values().all(|tensor| tensor.dtype == Dtype::BF16));

    merganser(dir.path(), &["apply", &b, "tv1", "-o", "again"]).done();
    let (again, fine) = (models::read(&dir.path().join("again")), models::read(&ft1));
    assert_eq!(
        again, fine,
        "differences of halves in single precision are exact"
    );
    let file = |folder: &Path| fs::read(folder.join("config.json")).expect("a configuration");
    assert_eq!(file(&dir.path().join("again")), file(&base));

    let args = [
        "apply", &b, "tv1@0.5", "tv2@-2", "-o", "mixed", "--dtype", "float32",
    ];
    merganser(dir.path(), &args).done();
    let mixed = models::read(&dir.path().join("mixed"));
    let (base, tv1) = (models::read(&base), models::read(&dir.path().join("tv1")));
    for (name, tensor) in &mixed {
        assert_eq!(tensor.dtype, Dtype::F32);
        for (i, x) in tensor.values.iter().enumerate() {
            let at = |tensors: &Tensors| tensors[name].values[i];
            let expected = at(&base) + 0.5 * at(&tv1) - 2.0 * at(&tv2);
            assert!(
                (x - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                "{name}"
            );
        }
    }
    // A stored difference is no model, whatever its folder looks like.
    let recipe = format!(
        "merge_method: linear\nmodels:\n  - model: {b}\n    parameters: {{weight: 1}}\n  - model: ./tv1\n    parameters: {{weight: 1}}\n"
    );
    fs::write(dir.path().join("recipe.yml"), recipe).expect("a recipe");
    let run = merganser(dir.path(), &["merge", "recipe.yml", "merged"]).refused();
    assert!(
        run.stderr.contains("./tv1 is a task vector, not a model"),
        "{}",
        run.stderr
    );
}

#[test]
fn adapters_and_task_vectors_add_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| input(name).to_string_lossy().into_owned();
    let (b, f, a) = (path("llama-base"), path("llama-ft1"), path("lora-a"));
    merganser(dir.path(), &["extract", "task-vector", &f, &b, "-o", "tv"]).done();
    merganser(dir.path(), &["apply", &b, &a, "-o", "alone"]).done();
    merganser(
        dir.path(),
        &["apply", &b, &format!("{a}@0.5"), "tv@0.25", "-o", "both"],
    )
    .done();
    let [alone, both, tv] =
        ["alone", "both", "tv"].map(|name| models::read(&dir.path().join(name)));
    let base = models::read(&input("llama-base"));
    for (name, tensor) in &both {
        for (i, x) in tensor.values.iter().enumerate() {
            let at = |tensors: &Tensors| tensors[name].values[i];
            let expected = at(&base) + 0.5 * (at(&alone) - at(&base)) + 0.25 * at(&tv);
            assert!(
                (x - expected).abs() <= 1e-6,
                "{name}: {x} instead of {expected}"
            );
        }
    }
    // mergekit bakes the same adapter into the same base.
    let expected = models::read(&golden().join("open/lora-01-passthrough/expected"));
    assert!(off(&alone, &expected, &base, |_| true) < 1e-5);
}

#[test]
fn what_cannot_be_applied_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| input(name).to_string_lossy().into_owned();
    let (b, f, a, bert) = (
        path("llama-base"),
        path("llama-ft1"),
        path("lora-a"),
        path("bert-base"),
    );
    merganser(dir.path(), &["extract", "task-vector", &f, &b, "-o", "tv"]).done();
    let with_adapter = format!("{b}+{a}");
    for (args, expected) in [
        (
            &["apply", &*b, &*f, "-o", "out"][..],
            "is a model, neither an adapter nor a task vector",
        ),
        (&["apply", &*bert, "tv", "-o", "out"], "is a bert model and"),
        (
            &["apply", &*bert, &*a, "-o", "out"],
            "which the model does not have",
        ),
        (
            &["apply", "tv", &*a, "-o", "out"],
            "tv is a task vector, not a model",
        ),
        (
            &["apply", &*b, "nowhere", "-o", "out"],
            "cannot open nowhere",
        ),
        (
            &["apply", &*b, "tv@inf", "-o", "out"],
            "the weight of 'tv@inf' is not finite",
        ),
        (
            &["apply", &*with_adapter, "tv", "-o", "out"],
            "has an adapter already",
        ),
        (
            &["extract", "task-vector", &*bert, &*b, "-o", "out"],
            "is a llama model and",
        ),
        (
            &[
                "extract",
                "task-vector",
                &*path("llama-ext"),
                &*b,
                "-o",
                "out",
            ],
            "has shape [92, 32]",
        ),
    ] {
        let said = refused(&dir, args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
}

#[test]
fn inspect_tells_where_the_energy_lies() {
    let dir = tempfile::tempdir().expect("a folder");
    // Diagonal updates, so that singular values and spaces can be read off.
    let layer = |values: [f32; 3]| {
        let mut q = vec![1.0; 12];
        for (i, x) in values.iter().enumerate() {
            q[i * 4 + i] += x;
        }
        q
    };
    for (name, values) in [
        ("base", [0.0; 3]),
        ("a", [2.0, 1.0, 0.0]),
        ("b", [0.0, 0.0, 3.0]),
        ("m", [2.0, 0.0, 0.0]),
    ] {
        let tensors = [(
            "model.layers.0.q.weight",
            Dtype::F32,
            vec![3, 4],
            layer(values),
        )];
        checkpoint::write(&dir.path().join(name), &json!({}), &tensors);
    }
    let found = |options: &[&str]| {
        let args = [&["inspect", "base", "a", "b", "--json"], options].concat();
        let event = merganser(dir.path(), &args).done().events().pop();
        event.expect("an event")["spectra"].clone()
    };
    assert_eq!(found(&[]), Value::Null);
    let close = |value: &Value, expected: f64| {
        let x = value.as_f64().expect("a number");
        assert!((x - expected).abs() < 1e-6, "{x} instead of {expected}");
    };
    let all = found(&["--spectra", "--alignment"]);
    let matrix = &all["matrices"][0];
    close(&matrix["stable_rank"][0], 1.25);
    close(&matrix["stable_rank"][1], 1.0);
    close(&matrix["singular_values"][0][1], 1.0);
    assert_eq!(
        matrix["singular_values"][1].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(matrix["space"], 3);
    close(&all["all"]["alignment"][0], 1.0);
    // The merged model has forgotten b and half of a.
    let merged = found(&["--alignment", "--merged", "m"]);
    assert_eq!(merged["matrices"][0]["space"], 1);
    close(&merged["kinds"][0]["alignment"][0], 2.0 / 5.0_f64.sqrt());
    close(&merged["kinds"][0]["alignment"][1], 0.0);
    assert_eq!(merged["kinds"][0]["alignment"][2], Value::Null);
    assert_eq!(merged["kinds"][0]["kind"], "q.weight");

    let args = ["inspect", "base", "a", "b", "--spectra", "--alignment"];
    let text = merganser(dir.path(), &args).done().stdout;
    for expected in [
        "stable rank [1]",
        "aligned [2]",
        "1.25",
        "q.weight [2]",
        "|█",
    ] {
        assert!(text.contains(expected), "{expected} in\n{text}");
    }
    let run = merganser(dir.path(), &["inspect", "base", "--spectra"]).refused();
    assert!(run.stderr.contains("name the base first"), "{}", run.stderr);
}

#[test]
fn random_projection_extracts_nearly_the_best_adapter() {
    let dir = TempDir::new().expect("a folder");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/demo");
    let at = |name: &str| demo.join(name).display().to_string();
    let (fine, base) = (at("tasks/sum"), at("base"));
    let error = |out: &str, more: &[&str]| -> f64 {
        let fixed = [
            "extract", "lora", &*fine, &*base, "-o", out, "--rank", "6", "--json",
        ];
        let run = merganser(dir.path(), &[&fixed, more].concat());
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let last: Value =
            serde_json::from_str(run.stdout.lines().last().expect("an event")).expect("JSON");
        last["relative_error"].as_f64().expect("an error")
    };
    let (best, found) = (error("exact", &[]), error("found", &["--randomized"]));
    assert!(
        found >= best * (1.0 - 1e-9) && found < 1.1 * best,
        "{found} {best}"
    );
    let fixed = [
        "extract",
        "lora",
        &*fine,
        &*base,
        "-o",
        "none",
        "--energy",
        "0.5",
        "--randomized",
    ];
    let run = merganser(dir.path(), &fixed);
    assert_eq!(run.code, Some(2));
    assert!(
        run.stderr.contains("needs a limit of the rank"),
        "{}",
        run.stderr
    );
}
