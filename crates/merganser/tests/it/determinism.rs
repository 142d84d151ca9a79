//! One recipe has one result: the same bytes whatever the threads, the instructions, the parts, the interruptions.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use merganser::kernels::simd;
use tempfile::TempDir;

use crate::models::{self, assert_same, bytes, chunky, input, names};
use crate::program::{finish, finished_tensors, interrupt, merganser};

type Files = BTreeMap<String, Vec<u8>>;

/// Methods of different kinds: element by element, whole-tensor sums, exact selection, random masks, variance.
const METHODS: [&str; 6] = ["linear", "slerp", "ties", "dare_ties", "della", "sce"];

/// Small enough that every model here takes several files.
const SHARDS: [&str; 2] = ["--out-shard-size", "100000"];

/// Where a recipe's models are.
#[derive(Clone, Copy, Debug)]
enum Models {
    /// Tiny bfloat16 models; one is sharded.
    Golden,
    /// Models with tensors of several chunks.
    Chunky,
}

impl Models {
    fn path(self, name: &str) -> PathBuf {
        match self {
            Self::Golden => input(&format!("llama64-bf16-{name}")),
            Self::Chunky => chunky().join(name),
        }
    }

    fn recipe(self, method: &str) -> String {
        let [base, first, second] =
            ["base", "ft1", "ft2"].map(|name| self.path(name).display().to_string());
        let head = format!("merge_method: {method}\nseed: 11\nbase_model: {base}\nmodels:\n");
        match method {
            "linear" => format!(
                "merge_method: linear\nseed: 11\nmodels:\n  - {{model: {first}, parameters: {{weight: 0.3}}}}\n  - {{model: {second}, parameters: {{weight: [0.9, 0.1]}}}}\n"
            ),
            "slerp" => format!(
                "{head}  - {{model: {base}}}\n  - {{model: {first}}}\nparameters: {{t: 0.4}}\n"
            ),
            "sce" => format!(
                "{head}  - {{model: {first}}}\n  - {{model: {second}}}\nparameters: {{select_topk: 0.3}}\n"
            ),
            _ => format!(
                "{head}  - {{model: {first}, parameters: {{weight: 0.6, density: 0.4}}}}\n  - {{model: {second}, parameters: {{weight: 0.5, density: 0.55}}}}\n"
            ),
        }
    }
}

/// A recipe in a folder of its own.
struct Bench {
    folder: TempDir,
    recipe: PathBuf,
}

impl Bench {
    fn new(models: Models, method: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let recipe = folder.path().join("recipe.yml");
        fs::write(&recipe, models.recipe(method)).expect("a recipe");
        Self { folder, recipe }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Merges into a new folder `name` with more options and, perhaps, at a level of instructions.
    fn merge(&self, name: &str, options: &[&str], level: Option<&str>) -> Files {
        let out = self.out(name);
        let mut command = merganser();
        command.arg("merge").arg(&self.recipe).arg(&out);
        command.args(SHARDS).args(options);
        if let Some(level) = level {
            command.env(simd::VARIABLE, level);
        }
        finish(command).done();
        bytes(&out)
    }
}

/// Every method on both kinds of models, and its result with one thread.
fn every(check: impl Fn(&Bench, &str, &Files)) {
    for models in [Models::Golden, Models::Chunky] {
        for method in METHODS {
            let bench = Bench::new(models, method);
            let plain = bench.merge("plain", &["--threads", "1"], None);
            assert!(plain.len() > 3, "the output was to be sharded");
            check(&bench, &format!("{method} on {models:?}"), &plain);
        }
    }
}

#[test]
fn threads_do_not_matter() {
    every(|bench, what, plain| {
        for threads in ["1", "2", "3"] {
            let again = bench.merge(&format!("threads-{threads}"), &["-j", threads], None);
            assert_same(plain, &again, &format!("{what}, {threads} threads"));
        }
    });
}

#[test]
fn instructions_do_not_matter() {
    let levels: Vec<&str> = simd::available().map(simd::Level::name).collect();
    assert!(levels.contains(&"scalar"));
    every(|bench, what, plain| {
        for level in &levels {
            let again = bench.merge(&format!("level-{level}"), &[], Some(level));
            assert_same(plain, &again, &format!("{what}, {level} instructions"));
        }
    });
}

#[test]
fn memory_does_not_matter() {
    every(|bench, what, plain| {
        let again = bench.merge("memory", &["--memory", "64MiB"], None);
        assert_same(plain, &again, &format!("{what}, little memory"));
    });
}

#[test]
fn the_seed_matters_to_random_masks_and_to_nothing_else() {
    every(|bench, what, plain| {
        // Headers name the seed, so tensors are compared.
        bench.merge("seed", &["--seed", "12"], None);
        let [plain_tensors, other] = ["plain", "seed"].map(|name| models::read(&bench.out(name)));
        let random = what.starts_with("dare") || what.starts_with("della");
        assert_eq!(plain_tensors != other, random, "{what}");
        let given = bench.merge("same-seed", &["--seed", "11"], None);
        assert_same(
            plain,
            &given,
            &format!("{what}, the recipe's seed given again"),
        );
    });
}

#[test]
fn parts_do_not_matter() {
    every(|bench, what, plain| {
        for parts in [1, 5] {
            let name = format!("parts-{parts}");
            let out = bench.out(&name);
            for part in 1..=parts {
                assert_eq!(
                    names_if_any(&out),
                    if part == 1 {
                        vec![]
                    } else {
                        vec![".partial-merganser"]
                    },
                    "{what}: an unsealed model is visible"
                );
                bench.part(&out, part, parts);
            }
            seal(&out);
            assert_same(plain, &bytes(&out), &format!("{what}, {parts} parts"));
        }
    });
}

impl Bench {
    fn part(&self, out: &Path, part: usize, parts: usize) {
        let mut command = merganser();
        command.arg("merge").arg(&self.recipe).arg(out).args(SHARDS);
        command.arg("--part").arg(format!("{part}/{parts}"));
        finish(command).done();
    }
}

fn seal(out: &Path) {
    let mut command = merganser();
    command.arg("seal").arg(out);
    finish(command).done();
}

fn names_if_any(folder: &Path) -> Vec<String> {
    if folder.exists() {
        names(folder)
    } else {
        Vec::new()
    }
}

#[test]
fn a_part_may_be_killed_and_made_again() {
    let bench = Bench::new(Models::Chunky, "ties");
    let plain = bench.merge("plain", &[], None);
    let out = bench.out("out");
    for part in 1..=5 {
        if part == 3 {
            let mut command = merganser();
            command
                .arg("merge")
                .arg(&bench.recipe)
                .arg(&out)
                .args(SHARDS);
            command.args(["--part", "3/5", "-j", "1"]);
            let staging = out.join(".partial-merganser");
            let before = names(&staging);
            interrupt(command, || names(&staging) != before);

            // Sealed too early, it is refused with the number of the part that is missing.
            let mut command = merganser();
            command.arg("seal").arg(&out);
            let run = finish(command).failed();
            assert!(run.stderr.contains("3, 4, 5"), "{}", run.stderr);
        }
        bench.part(&out, part, 5);
    }
    seal(&out);
    assert_same(&plain, &bytes(&out), "one part killed");
}

#[test]
fn an_interrupted_merge_goes_on_to_the_same_result() {
    for method in METHODS {
        let bench = Bench::new(Models::Chunky, method);
        let plain = bench.merge("plain", &[], None);
        let out = bench.out("out");
        let mut command = merganser();
        command
            .arg("merge")
            .arg(&bench.recipe)
            .arg(&out)
            .args(SHARDS);
        command.args(["-j", "1"]);
        interrupt(command, || finished_tensors(&out) >= 2);
        if !out.join("config.json").exists() {
            bench.merge("out", &[], None);
        }
        assert_same(&plain, &bytes(&out), &format!("{method}, interrupted"));
    }
}

#[test]
fn a_second_run_gives_the_same_record_and_card() {
    // Also beside the weights nothing may tell one run from another: no times, no machine, no random names.
    static FIRST: OnceLock<Files> = OnceLock::new();
    for name in ["first", "second"] {
        let bench = Bench::new(Models::Golden, "ties");
        let out = bench.out("out");
        bench.merge("out", &[], None);
        let all: Files = names(&out)
            .into_iter()
            .map(|name| (name.clone(), fs::read(out.join(&name)).expect("a file")))
            .collect();
        assert_eq!(models::names(&out).len(), all.len());
        assert_same(FIRST.get_or_init(|| all.clone()), &all, name);
    }
}
