//! Writes made-up reports, to see what a report looks like.
//!
//!     cargo run -p merganser-report --example sample_report -- FOLDER

use std::error::Error;
use std::path::PathBuf;

#[path = "../tests/samples/mod.rs"]
mod samples;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("name a folder")?;
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder)?;
    for (name, report) in [
        ("small", samples::small()),
        ("large", samples::large()),
        ("one-layer", samples::one_layer()),
        ("hostile", samples::hostile()),
        ("empty", merganser_report::Report::default()),
    ] {
        std::fs::write(folder.join(format!("{name}.html")), report.to_html()?)?;
        std::fs::write(folder.join(format!("{name}.json")), report.to_json()?)?;
        std::fs::write(folder.join(format!("{name}.txt")), report.to_table(100))?;
    }
    Ok(())
}
