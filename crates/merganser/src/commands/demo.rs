//! `merganser demo`: what projection brings, on models that come with the program.

use std::time::Instant;

use merganser::Failure;

use crate::cli::Demo;
use crate::commands::diagnose::failed;
use crate::output::Output;

pub(crate) fn run(arguments: &Demo, output: &Output) -> Result<(), Failure> {
    let begun = Instant::now();
    let say = |what: &str| {
        if output.json {
            Output::event(&serde_json::json!({ "event": "step", "what": what }));
        } else {
            output.note(what);
        }
    };
    let demo = merganser::demo(&arguments.out, &say)?;
    if output.json {
        let json = demo.report.to_json().map_err(failed)?;
        Output::event(&serde_json::from_str(&json).map_err(failed)?);
        return Ok(());
    }
    let mut text = String::from("\nOne vision transformer, fine-tuned for four tasks:\n");
    for (task, question) in &demo.tasks {
        text.push_str(&format!("  {task:<11} {question}\n"));
    }
    text.push('\n');
    text.push_str(&demo.report.to_table(100));
    text.push_str(&format!(
        "\nfinished in {:.1} s\nreport   {}\nrecipes  {}\n",
        begun.elapsed().as_secs_f64(),
        demo.page.display(),
        arguments.out.join("recipes").display()
    ));
    crate::output::result(&text);
    Ok(())
}
