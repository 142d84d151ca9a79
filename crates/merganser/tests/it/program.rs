//! Starting the program and looking at what it says.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a run of the program left behind.
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program, told nothing by the environment of whoever runs the tests.
pub(crate) fn merganser() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merganser"));
    command
        .env_remove(merganser::kernels::simd::VARIABLE)
        .env_remove("SLURM_ARRAY_TASK_ID")
        .env_remove("JOB_COMPLETION_INDEX")
        .env_remove("COLUMNS")
        .env("HF_HUB_OFFLINE", "1")
        .env("NO_COLOR", "1");
    command
}

/// Runs the program in the folder `dir` and waits for it.
pub(crate) fn run<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Run {
    let mut command = merganser();
    command.current_dir(dir).args(args);
    finish(command)
}

/// Runs the words of a line, which must succeed.
#[track_caller]
pub(crate) fn done(dir: &Path, line: &str) -> Run {
    run(dir, line.split_whitespace()).done()
}

/// Runs the words of a line, which must be refused; the message.
#[track_caller]
pub(crate) fn refused(dir: &Path, line: &str) -> String {
    run(dir, line.split_whitespace()).refused().stderr
}

/// Runs a prepared command and waits for it. No run may ever panic or hang.
pub(crate) fn finish(command: Command) -> Run {
    let line = format!("{command:?}");
    let output = assert_cmd::Command::from_std(command)
        .timeout(Duration::from_secs(120))
        .output()
        .unwrap_or_else(|error| panic!("{line}: {error}"));
    let run = Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    };
    assert!(
        !run.stderr.contains("panicked at"),
        "{line} panicked:\n{}",
        run.stderr
    );
    run
}

/// Starts a command and kills it once `enough` holds. Whether it was still running is for the caller to know.
pub(crate) fn interrupt(mut command: Command, enough: impl Fn() -> bool) -> bool {
    command.stdout(Stdio::null());
    command.stderr(Stdio::null());
    let mut child = command.spawn().expect("the program starts");
    let begun = Instant::now();
    while !enough() && begun.elapsed() < Duration::from_secs(60) {
        if child.try_wait().expect("a child").is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().expect("it can be killed");
    let status = child.wait().expect("a child");
    status.code().is_none()
}

/// The journal of a merge in one part, as far as it is written.
pub(crate) fn finished_tensors(out: &Path) -> usize {
    let journal = out.join(".partial-merganser").join("journal");
    // The first line names the plan.
    fs::read_to_string(journal).map_or(0, |text| text.matches('\n').count().saturating_sub(1))
}

impl Run {
    /// The run, which must have succeeded.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        self.ended(0)
    }

    /// The run, which must have failed while it worked.
    #[track_caller]
    pub(crate) fn failed(self) -> Self {
        self.ended(1)
    }

    /// The run, which must have refused its input.
    #[track_caller]
    pub(crate) fn refused(self) -> Self {
        self.ended(2)
    }

    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    /// What was said on stderr, with the folder `dir` written as `[DIR]`, and other things that differ from run to run
    /// taken out: fit for a snapshot.
    pub(crate) fn said(&self, dir: &Path) -> String {
        stable(&self.stderr, dir)
    }

    /// The lines of stdout, each a JSON object.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("{error} in this line of stdout: {line}"));
                assert!(value.is_object(), "no object: {line}");
                value
            })
            .collect()
    }
}

/// `text` with the folder `dir` written as `[DIR]`.
pub(crate) fn stable(text: &str, dir: &Path) -> String {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    text.replace(&*real.to_string_lossy(), "[DIR]")
        .replace(&*dir.to_string_lossy(), "[DIR]")
}
