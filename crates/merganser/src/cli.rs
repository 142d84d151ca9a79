//! The command line, as clap sees it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Merges fine-tuned neural networks without retraining.
#[derive(Debug, Parser)]
#[command(
    name = "merganser",
    version,
    about,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(
    after_help = "Examples:\n  merganser merge recipe.yml out/            merge a mergekit recipe\n  merganser plan recipe.yml                  what it would read and write\n  merganser inspect base/ fine-tune/         compare two models\n  merganser methods ties                     what a method does, with its formula\n\nExit codes: 0 done, 1 failed, 2 bad input, 3 flagged by an audit."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Print machine-readable JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Print every tensor
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Number of threads [default: all cores]
    #[arg(long, short = 'j', global = true, value_name = "N", alias = "num-threads", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Working memory that may be used, such as 512MiB or 2GB [default: 2GiB, or what one matrix takes if that is more]
    #[arg(long, global = true, value_name = "SIZE", value_parser = bytes)]
    pub(crate) memory: Option<u64>,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub(crate) color: When,
}

impl Global {
    /// The budget of commands that hold no whole matrix of unknown size.
    pub(crate) fn memory(&self) -> u64 {
        self.memory.unwrap_or(merganser_run::USUAL_MEMORY)
    }
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Merge the models of a recipe
    Merge(Merge),
    /// Show what a merge would read, write and need, without doing it
    Plan(Plan),
    /// Merge models that come with the program by seven methods, and compare them
    Demo(Demo),
    /// Record what a model's layers read on samples of its task
    Calibrate(Calibrate),
    /// Say how good a projection will be, without writing a model
    Diagnose(Diagnose),
    /// Measure models on labelled data: accuracy, perplexity, similarity, retrieval
    Evaluate(crate::commands::evaluate::Evaluate),
    /// Choose a recipe's parameters, with labels or without
    Tune(crate::commands::tune::Tune),
    /// Turn what a fine-tune learned into a LoRA adapter or a task vector
    Extract(crate::commands::extract::Extract),
    /// Add adapters and task vectors to a model
    Apply(crate::commands::apply::Apply),
    /// Look for what stands out: an update of a sequence, a contributor of a merge
    Audit(crate::commands::audit::Audit),
    /// Compare backdoor vectors, and subtract injected ones from a merged model
    Bv(crate::commands::bv::Bv),
    /// Say which predictions a change of weights of a given size cannot alter
    Certify(crate::commands::certify::Certify),
    /// Write what a model makes of samples into a file of vectors
    Embed(crate::commands::embed::Embed),
    /// Keep an index of embeddings in use when their model changes
    Drift(crate::commands::drift::DriftArguments),
    /// Statistics of classes: build them from features, take them to a newer model
    Stats(crate::commands::stats::StatsArguments),
    /// Make a classifier from statistics of classes, without training
    Head(crate::commands::head::HeadArguments),
    /// Put the parts of a merge together
    Seal(Seal),
    /// Look into models: tensors, sizes, layers; several are compared with the first
    Inspect(Inspect),
    /// List the merge methods, or explain one
    Methods(Methods),
    /// Rebuild the model of one task from an EMR merge
    Rebuild(Rebuild),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        dir: PathBuf,
    },
}

/// Merge the models of a recipe.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples:\n  merganser merge ties.yml /tmp/out\n  merganser merge multi.yml /tmp/several             a merge that uses the result of another\n\nWith files of your own:\n  merganser merge recipe.yml out/\n  merganser merge recipe.yml out/ --out-shard-size 2GB --memory 512MiB\n  merganser merge recipe.yml out/ --part 3/16        one of 16 jobs; then: merganser seal out/\n\nA merge that was interrupted goes on where it stopped when the same command is run again."
)]
pub(crate) struct Merge {
    /// The recipe: mergekit's YAML; - reads standard input
    pub(crate) recipe: PathBuf,
    /// The folder for the merged model
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) planning: Planning,
    /// Replace a model that is already in OUT, once the new one is complete
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Merge inputs that hold NaN or infinity
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
    /// Do not wait until the files are on disk: faster, but a power cut may damage the model
    #[arg(long)]
    pub(crate) no_sync: bool,
    /// Make only part I of N, counted from 1; `auto/N` takes I from SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX
    #[arg(long, value_name = "I/N")]
    pub(crate) part: Option<String>,
    /// Do not write README.md
    #[arg(long, alias = "no-write-model-card")]
    pub(crate) no_card: bool,
    /// Record a hash of the whole content of every input file, not only of its header and a sample
    #[arg(long)]
    pub(crate) hash_inputs: bool,
    /// Keep the intermediate models of a recipe with several documents here
    #[arg(long, short = 'I', value_name = "DIR")]
    pub(crate) intermediate_dir: Option<PathBuf>,
    /// magmax: also merge what was merged into STATE before, and leave the running maximum there
    #[arg(long = "continue", value_name = "STATE", conflicts_with = "part")]
    pub(crate) continued: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) ignored: Ignored,
}

/// What decides the plan.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Planning {
    /// Largest output file, such as 5GB, 2GiB or a number of bytes
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = bytes)]
    pub(crate) out_shard_size: u64,
    /// Seed of the random masks [default: the recipe's `seed`, or 0]
    #[arg(long, alias = "random-seed", value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Warn about unknown keys and parameters instead of refusing them
    #[arg(long)]
    pub(crate) lenient: bool,
    /// Merge models of different architectures
    #[arg(long)]
    pub(crate) allow_crimes: bool,
    /// Merge tensors that some models lack from the models that have them
    #[arg(long)]
    pub(crate) allow_missing: bool,
    /// Cut vocabularies of different sizes to their common prefix of rows
    #[arg(long)]
    pub(crate) unsafe_truncate_embeddings: bool,
    /// Take models with an adapter as having this type, such as float32
    #[arg(long, value_name = "TYPE")]
    pub(crate) lora_merge_dtype: Option<String>,
    /// Treat the inputs as plain state dicts (the default if they are single files)
    #[arg(long)]
    pub(crate) state_dict: bool,
    /// State dicts: leave out tensors that some input lacks
    #[arg(long, short = 'i', conflicts_with = "tensor_union")]
    pub(crate) tensor_intersection: bool,
    /// State dicts: merge tensors that some input lacks from the others
    #[arg(long, short = 'u')]
    pub(crate) tensor_union: bool,
}

/// Options of mergekit that make no difference here.
#[derive(Debug, Args)]
#[command(next_help_heading = "Accepted for mergekit's sake, without effect")]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Ignored {
    #[arg(long, hide = true)]
    pub(crate) cuda: bool,
    #[arg(long, hide = true)]
    pub(crate) low_cpu_memory: bool,
    #[arg(long, hide = true)]
    pub(crate) lazy_unpickle: bool,
    #[arg(long, hide = true)]
    pub(crate) copy_tokenizer: bool,
    #[arg(long, hide = true)]
    pub(crate) trust_remote_code: bool,
    #[arg(long, hide = true)]
    pub(crate) clone_tensors: bool,
    #[arg(long, hide = true)]
    pub(crate) async_write: bool,
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) lora_merge_cache: Option<PathBuf>,
    #[arg(long, hide = true, value_name = "DIR")]
    pub(crate) transformers_cache: Option<PathBuf>,
}

impl Ignored {
    /// Names of the options given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        [
            (self.cuda, "--cuda"),
            (self.low_cpu_memory, "--low-cpu-memory"),
            (self.lazy_unpickle, "--lazy-unpickle"),
            (self.copy_tokenizer, "--copy-tokenizer"),
            (self.trust_remote_code, "--trust-remote-code"),
            (self.clone_tensors, "--clone-tensors"),
            (self.async_write, "--async-write"),
            (self.lora_merge_cache.is_some(), "--lora-merge-cache"),
            (self.transformers_cache.is_some(), "--transformers-cache"),
        ]
        .into_iter()
        .filter_map(|(given, name)| given.then_some(name))
        .collect()
    }
}

/// Show what a merge would do.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples:\n  merganser plan ties.yml\n  merganser plan slerp-gradient.yml --tensors layers.1.      the parameters of single tensors, as numbers\n\nWith files of your own:\n  merganser plan recipe.yml\n  merganser plan recipe.yml --tensors layers.0.      parameters of the first layer, as numbers\n  merganser plan recipe.yml --parts 16               how 16 machines would share the work"
)]
pub(crate) struct Plan {
    /// The recipe; - reads standard input
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) planning: Planning,
    /// Show how N machines would share the work
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) parts: Option<u16>,
    /// Show the tensors whose name contains TEXT, with their parameters (empty: all)
    #[arg(long, value_name = "TEXT")]
    pub(crate) tensors: Option<String>,
}

/// Show what projection brings.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  merganser demo\n  merganser demo --out /tmp/demo --json\n\nThe folder then holds the models, a recipe and a merged model for each method, and report.html."
)]
pub(crate) struct Demo {
    /// The folder for models, recipes, merges and the report
    #[arg(long, value_name = "DIR", default_value = "merganser-demo")]
    pub(crate) out: PathBuf,
}

/// Record the moments of a model.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  merganser calibrate models/sst2 --data sst2.jsonl -o sst2.moments.safetensors\n  merganser calibrate models/vit --data photos/ --samples 256 -o photos.moments.safetensors\n\nA recipe takes the file as `calibration:` of the model. The format is described in docs/moments.md, so that other\nprograms can write it."
)]
pub(crate) struct Calibrate {
    /// The fine-tuned model: a folder, a Hub id, base+adapter
    pub(crate) model: String,
    /// Samples: JSONL, JSON, TXT, CSV, TSV, Parquet, a folder of images, safetensors, npy
    #[arg(long, value_name = "PATH")]
    pub(crate) data: PathBuf,
    /// Where the moments go
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// The column of texts
    #[arg(long, value_name = "NAME")]
    pub(crate) column: Option<String>,
    /// What the names of ready tensors begin with, or the split of a table
    #[arg(long, value_name = "NAME")]
    pub(crate) split: Option<String>,
    /// At most so many samples
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) samples: usize,
    /// Which samples are chosen where there are more
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Cut texts at this many tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_length: Option<usize>,
    /// Replace a file that is there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Say how good a merge will be.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  merganser diagnose recipe.yml                        what each basis and method would capture\n  merganser diagnose recipe.yml --report report.html   the same as a page with plots\n\nThe recipe's method is one that looks at data (projection, regmean, lot …); every model has its `calibration`."
)]
pub(crate) struct Diagnose {
    /// The recipe; - reads standard input
    pub(crate) recipe: PathBuf,
    #[command(flatten)]
    pub(crate) planning: Planning,
    /// Write the report to this file as one self-contained HTML page
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Measure a merged model too, wherever it comes from (may be repeated)
    #[arg(long, value_name = "MODEL")]
    pub(crate) compare: Vec<PathBuf>,
    /// Accept models that hold NaN or infinity
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
}

/// Put the parts of a merge together.
#[derive(Debug, Args)]
pub(crate) struct Seal {
    /// The output folder given to `merganser merge --part`
    pub(crate) out: PathBuf,
    /// Replace a model that is already in OUT
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Look into models.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples, in the folder examples/models:\n  merganser inspect base\n  merganser inspect base dense sparse                 task vectors of two fine-tunes\n  merganser inspect base dense low-rank --spectra --alignment\n\nWith files of your own:\n  merganser inspect model/\n  merganser inspect base/ ft1/ ft2/                   task vectors of two fine-tunes\n  merganser inspect base/ ft1/ --tensors q_proj --json\n  merganser inspect base/ ft1/ ft2/ --spectra --alignment     where the energy of their matrices lies"
)]
pub(crate) struct Inspect {
    /// Models: folders, files, Hub ids, base+adapter; the first is the base of a comparison
    #[arg(required = true)]
    pub(crate) models: Vec<String>,
    /// Show every tensor whose name contains TEXT (empty: all)
    #[arg(long, value_name = "TEXT")]
    pub(crate) tensors: Option<String>,
    /// Singular values and stable ranks of the task vectors' matrices (one decomposition a matrix and model)
    #[arg(long)]
    pub(crate) spectra: bool,
    /// Share of each task vector that lies in the leading space of the merged one, which is their sum (as slow)
    #[arg(long)]
    pub(crate) alignment: bool,
    /// For --alignment: a merged model to be taken instead of the sum
    #[arg(long, value_name = "MODEL", requires = "alignment")]
    pub(crate) merged: Option<String>,
}

/// List the merge methods, or explain one.
#[derive(Debug, Args)]
pub(crate) struct Methods {
    /// The method to explain
    pub(crate) name: Option<String>,
}

/// Rebuild the model of one task from an EMR merge.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  merganser rebuild merged/ --task 0 math/            the first model of the recipe besides the base\n  merganser rebuild merged/ --task org/math math/     the same, by its name in the recipe\n\nMERGED is the folder of a merge by `merge_method: emr`, which leaves emr.safetensors and emr.json there."
)]
pub(crate) struct Rebuild {
    /// The folder an `emr` recipe was merged into
    pub(crate) merged: PathBuf,
    /// The task: its number, counted from 0, or the name of its model in the recipe
    #[arg(long)]
    pub(crate) task: String,
    /// The folder for the rebuilt model
    pub(crate) out: PathBuf,
    /// The base model [default: where the recipe had it]
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<String>,
    /// Replace a model that is already in OUT
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Reads a number of bytes: `5000000`, `5GB`, `512MiB`, mergekit's `5B` (billions of bytes).
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .replace('_', "")
        .parse()
        .map_err(|_| format!("'{text}' is no size; write 512MiB, 2GB or a number of bytes"))?;
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" | "b" => 1e9,
        "t" | "tb" => 1e12,
        "ki" | "kib" => 1024.0,
        "mi" | "mib" => 1024.0 * 1024.0,
        "gi" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "ti" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        other => {
            return Err(format!(
                "unknown unit '{other}'; use KB, MB, GB, TB or KiB, MiB, GiB, TiB"
            ));
        }
    };
    let size = number * factor;
    if !(1.0..=1e18).contains(&size) {
        return Err(format!("'{text}' is out of range; give at least one byte"));
    }
    Ok(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_the_usual_units() {
        assert_eq!(bytes("512MiB"), Ok(512 << 20));
        assert_eq!(bytes("5B"), Ok(5_000_000_000));
        assert_eq!(bytes("60000"), Ok(60_000));
        assert_eq!(bytes("1.5 GB"), Ok(1_500_000_000));
        assert!(
            bytes("0").is_err()
                && bytes("x").is_err()
                && bytes("3 apples").is_err()
                && bytes("").is_err()
        );
    }
}
