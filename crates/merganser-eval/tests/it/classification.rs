//! Heads of every kind, and accuracy.

use candle_core::{Device, Tensor};
use merganser_data::Source;
use merganser_eval::{Feature, Head, Loaded, Task, class_logits, features};
use merganser_model::Modality;

use crate::support::{
    Folder, Tensors, argmax, close, expected, golden, inputs, open, read, run, values,
};

#[test]
fn logits_of_the_models_own_head_are_those_of_torch() {
    for name in [
        "bert",
        "vit",
        "deit",
        "roberta",
        "llama_score",
        "distilbert",
    ] {
        let samples = inputs(name);
        for batch_size in [1, 2, 32] {
            let found = class_logits(
                &open(&golden(name)),
                None,
                &samples,
                None,
                false,
                batch_size,
            )
            .unwrap();
            close(&found.values, &values(&expected(name, "logits")), 2e-4);
        }
        // Read block by block instead of held in memory.
        let streamed = Loaded::open(name, &golden(name), None, 0).unwrap();
        let found = class_logits(&streamed, None, &samples, None, false, 2).unwrap();
        close(&found.values, &values(&expected(name, "logits")), 2e-4);
    }
}

#[test]
fn a_linear_head_is_put_on_the_feature() {
    let folder = Folder::new();
    let model = read(&golden("vit").join("model.safetensors"));
    let body: Tensors = model
        .iter()
        .filter(|(name, _)| !name.starts_with("classifier"))
        .map(|(n, t)| (n.clone(), t.clone()))
        .collect();
    let head: Tensors = model
        .into_iter()
        .filter(|(name, _)| name.starts_with("classifier"))
        .collect();
    let path = folder.path("head.safetensors");
    crate::support::write(&path, &head);
    let body = open(&folder.model("body", "vit", &body));
    let samples = inputs("vit");
    let error = class_logits(&body, None, &samples, None, false, 2).unwrap_err();
    assert!(
        folder
            .strip(&error.to_string())
            .contains("it has no head that gives classes; name one"),
        "{error}"
    );
    let head = Head::open(&path).unwrap();
    let found = class_logits(&body, Some(&head), &samples, None, false, 2).unwrap();
    close(&found.values, &values(&expected("vit", "logits")), 2e-4);
    // Of unit length: the logits less the bias are scaled by the norm.
    let network = body.network(Modality::Image).unwrap();
    let mut unit = features(&network, &body, &samples, Feature::Cls, 2).unwrap();
    unit.normalise();
    assert!((unit.row(0).iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    let scaled = class_logits(&body, Some(&head), &samples, None, true, 2).unwrap();
    assert_ne!(scaled.values, found.values);
}

#[test]
fn a_gaussian_head_gives_log_likelihoods_and_says_what_does_not_fit() {
    let folder = Folder::new();
    let samples = inputs("vit");
    let body = open(&golden("vit"));
    let network = body.network(Modality::Image).unwrap();
    let found = features(&network, &body, &samples, Feature::Cls, 2).unwrap();
    let (n, d) = (found.len(), found.width);
    let device = Device::Cpu;
    // The mean of each class is the feature of one sample; the second class is wider.
    let mean = Tensor::from_slice(&found.values[..2 * d], (2, d), &device).unwrap();
    let factor: Vec<f32> = [1.0, 0.5]
        .iter()
        .flat_map(|x| (0..d * d).map(move |k| if k % (d + 1) == 0 { *x } else { 0.0 }))
        .collect();
    let tensors = |bias: Vec<f32>, classes: usize| -> Tensors {
        let factor = Tensor::from_slice(&factor[..classes * d * d], (classes, d, d), &device);
        let bias = Tensor::from_vec(bias, classes, &device);
        [
            ("gaussian.mean", mean.clone()),
            ("gaussian.factor", factor.unwrap()),
            ("gaussian.bias", bias.unwrap()),
        ]
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect()
    };
    let path = folder.path("gaussian.safetensors");
    crate::support::write(&path, &tensors(vec![0.25, -1e30], 2));
    let logits = |path: &std::path::Path| {
        let head = Head::open(path)?;
        class_logits(&body, Some(&head), &samples, None, false, 2)
    };
    let with_absent = logits(&path).unwrap();
    assert!((0..n).all(|at| with_absent.row(at) == [0.0, -1e30]));
    crate::support::write(&path, &tensors(vec![0.25, -0.5], 2));
    let both = logits(&path).unwrap();
    for at in 0..n {
        let square = |class: usize| -> f64 {
            let pairs = found.row(at).iter().zip(found.row(class));
            pairs.map(|(x, y)| f64::from(x - y).powi(2)).sum()
        };
        let difference = (0.25 - 0.5 * square(0)) - (-0.5 - 0.125 * square(1));
        let given = f64::from(both.row(at)[0] - both.row(at)[1]);
        assert!((given - difference).abs() < 1e-4 * (1.0 + difference.abs()));
    }
    crate::support::write(&path, &tensors(vec![0.25], 1));
    let error = logits(&path).unwrap_err().to_string();
    assert!(error.contains("`gaussian.factor` has shape [1"), "{error}");
    let mut narrow = tensors(vec![0.0, 0.0], 2);
    let cut = |t: &Tensor, dim| t.narrow(dim, 0, d - 1).unwrap().contiguous().unwrap();
    let mean = cut(&narrow["gaussian.mean"], 1);
    let factor = cut(&cut(&narrow["gaussian.factor"], 1), 2);
    narrow.insert("gaussian.mean".into(), mean);
    narrow.insert("gaussian.factor".into(), factor);
    crate::support::write(&path, &narrow);
    let error = logits(&path).unwrap_err().to_string();
    assert!(error.contains("the model's features have width"), "{error}");
    let wrong = tensors(vec![f32::NAN, 0.0], 2);
    crate::support::write(&path, &wrong);
    let error = logits(&path).unwrap_err().to_string();
    assert!(error.contains("expected finite numbers"), "{error}");
}

#[test]
fn features_are_rows_and_means_of_the_last_hidden_state() {
    let model = open(&golden("bert"));
    let network = model.network(Modality::Text).unwrap();
    let hidden = expected("bert", "last_hidden_state");
    let mask = read(&golden("bert").join("inputs.safetensors"))["attention_mask"]
        .to_vec2::<i64>()
        .unwrap();
    let samples = inputs("bert");
    let get = |feature| features(&network, &model, &samples, feature, 2).unwrap();
    for (at, mask) in mask.iter().enumerate() {
        let rows = hidden.get(at).unwrap().to_vec2::<f32>().unwrap();
        let real: Vec<&Vec<f32>> = rows
            .iter()
            .zip(mask)
            .filter(|(_, real)| **real == 1)
            .map(|(row, _)| row)
            .collect();
        close(get(Feature::Cls).row(at), real[0], 2e-4);
        close(get(Feature::Last).row(at), real[real.len() - 1], 2e-4);
        let mean: Vec<f32> = (0..rows[0].len())
            .map(|k| real.iter().map(|row| row[k]).sum::<f32>() / real.len() as f32)
            .collect();
        close(get(Feature::Mean).row(at), &mean, 2e-4);
    }
    close(
        &get(Feature::Pooled).values,
        &values(&expected("bert", "pooled")),
        2e-4,
    );
    let error = features(&network, &model, &samples, Feature::Embeds, 2).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("has no such feature; choose cls, mean or last"),
        "{error}"
    );
    assert_eq!(Feature::of(&network), Feature::Mean);
}

#[test]
fn the_head_of_a_fine_tune_is_put_on_another_body() {
    let folder = Folder::new();
    let model = read(&golden("bert").join("model.safetensors"));
    // A body without classifier, whose names have no prefix.
    let body: Tensors = model
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("bert.")?.to_owned(), tensor.clone())))
        .collect();
    let samples = inputs("bert");
    let head = Head::open(&golden("bert")).unwrap();
    let bare = open(&folder.model("bare", "bert", &body));
    let found = class_logits(&bare, Some(&head), &samples, None, false, 2).unwrap();
    close(&found.values, &values(&expected("bert", "logits")), 2e-4);
    // A body that was changed gives other logits, through the same head.
    let mut changed = body.clone();
    let name = "encoder.layer.0.output.dense.weight";
    changed.insert(name.into(), (&changed[name] * 3.0).unwrap());
    let changed = open(&folder.model("changed", "bert", &changed));
    let other = class_logits(&changed, Some(&head), &samples, None, false, 2).unwrap();
    assert_ne!(other.values, found.values);
    // One of another shape does not fit.
    let mut smaller = body.clone();
    smaller.insert(
        name.into(),
        Tensor::zeros((32, 39), candle_core::DType::F32, &Device::Cpu).unwrap(),
    );
    smaller.remove("encoder.layer.1.output.dense.bias");
    let smaller = folder.model("smaller", "bert", &smaller);
    let error = class_logits(&open(&smaller), Some(&head), &samples, None, false, 2).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it does not fit under the head of"),
        "{error}"
    );
}

#[test]
fn an_adapter_is_part_of_its_model() {
    let folder = Folder::new();
    let mut model = read(&golden("bert").join("model.safetensors"));
    let module = "bert.encoder.layer.1.attention.self.query";
    let a = Tensor::arange(0f32, 64.0, &Device::Cpu)
        .unwrap()
        .reshape((2, 32))
        .unwrap();
    let a = (a / 64.0).unwrap();
    let b = a.t().unwrap().contiguous().unwrap();
    let adapter = [("lora_A.weight", &a), ("lora_B.weight", &b)]
        .map(|(part, tensor)| (format!("base_model.model.{module}.{part}"), tensor.clone()));
    crate::support::write(
        &folder.path("lora/adapter_model.safetensors"),
        &adapter.into_iter().collect(),
    );
    folder.file(
        "lora/adapter_config.json",
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}"#,
    );
    let samples = inputs("bert");
    let logits = |model: &Loaded| {
        class_logits(model, None, &samples, None, false, 2)
            .unwrap()
            .values
    };
    let update = (b.matmul(&a).unwrap() * 2.0).unwrap();
    let name = format!("{module}.weight");
    model.insert(name.clone(), (&model[&name] + update).unwrap());
    let merged = logits(&open(&folder.model("merged", "bert", &model)));
    for memory in [0, u64::MAX] {
        let adapted = Loaded::open(
            "adapted",
            &golden("bert"),
            Some(&folder.path("lora")),
            memory,
        )
        .unwrap();
        close(&logits(&adapted), &merged, 1e-5);
    }
    assert_ne!(merged, logits(&open(&golden("bert"))));
    let error = Loaded::open("x", &golden("vit"), Some(&folder.path("lora")), 0).unwrap_err();
    assert!(
        error.to_string().contains(
            "its adapter changes tensor `bert.encoder.layer.1.attention.self.query.weight`"
        ),
        "{error}"
    );
}

#[test]
fn accuracy_is_counted_over_all_and_by_class() {
    let folder = Folder::new();
    let mut labels = argmax(&expected("bert", "logits"));
    let right = Source::new(folder.labelled("bert", &labels));
    let found = run(&[&golden("bert")], &[Task::new(right)]).unwrap();
    let score = &found.tasks[0].scores[0];
    assert_eq!((score.value, score.samples), (1.0, 3));
    assert_eq!(score.interval.unwrap()[1], 1.0);
    assert_eq!(
        score
            .classes
            .iter()
            .map(|class| class.correct)
            .sum::<usize>(),
        3
    );
    labels[0] = (labels[0] + 1) % 3;
    let wrong = Source::new(folder.labelled("bert", &labels));
    let found = run(&[&golden("bert")], &[Task::new(wrong)]).unwrap();
    assert!((found.tasks[0].scores[0].value - 2.0 / 3.0).abs() < 1e-12);
    let outside = Source::new(folder.labelled("bert", &[0, 1, 3]));
    let error = run(&[&golden("bert")], &[Task::new(outside)]).unwrap_err();
    assert_eq!(
        folder.strip(&error.to_string()),
        "task `bert` of model golden/bert: labels: found class 3, but the head has 3 classes, 0 to 2"
    );
}

#[test]
fn heads_that_cannot_be_used_are_refused() {
    let folder = Folder::new();
    let write = |name: &str, tensors: &[(&str, &[usize])]| {
        let tensors = tensors.iter().map(|(name, shape)| {
            (
                (*name).to_owned(),
                Tensor::zeros(*shape, candle_core::DType::F32, &Device::Cpu).unwrap(),
            )
        });
        let path = folder.path(name);
        crate::support::write(&path, &tensors.collect());
        path
    };
    let refusal = |path: std::path::PathBuf| {
        let samples = inputs("bert");
        let found = Head::open(&path).and_then(|head| {
            class_logits(
                &open(&golden("bert")),
                Some(&head),
                &samples,
                None,
                false,
                2,
            )
        });
        folder.strip(&found.unwrap_err().to_string())
    };
    assert_eq!(
        refusal(write("a.safetensors", &[("x", &[3, 4])])),
        "head `a.safetensors`: expected `classifier.weight` or `weight`; it holds `x` [3, 4]"
    );
    assert_eq!(
        refusal(write("b.safetensors", &[("weight", &[3])])),
        "head `b.safetensors`: its weight has shape [3]; expected (classes, width)"
    );
    assert_eq!(
        refusal(write(
            "c.safetensors",
            &[("weight", &[3, 32]), ("bias", &[2])]
        )),
        "head `c.safetensors`: its bias has shape [2]; expected [3] as its weight has rows"
    );
    assert_eq!(
        refusal(write("d.safetensors", &[("weight", &[3, 31])])),
        "head `d.safetensors`: its weight has shape [3, 31], the model's features have width 32"
    );
}

#[test]
fn weights_that_are_not_finite_are_found() {
    let folder = Folder::new();
    let mut model = read(&golden("bert").join("model.safetensors"));
    let name = "bert.encoder.layer.0.output.dense.bias";
    model.insert(name.into(), (&model[name] * f64::NAN).unwrap());
    let broken = open(&folder.model("broken", "bert", &model));
    let error = class_logits(&broken, None, &inputs("bert"), None, false, 2).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the network gives NaN for sample 0"),
        "{error}"
    );
}
