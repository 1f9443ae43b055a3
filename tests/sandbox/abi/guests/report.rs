// A program of Rust's standard library: arguments, files, a directory, a clock, threads of output.
use std::{env, fs, process, time::Instant};

fn main() {
    let started = Instant::now();
    let arguments: Vec<String> = env::args().collect();
    let picture = match fs::read(&arguments[1]) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}: {}", arguments[1], error);
            process::exit(9);
        }
    };
    let mut names: Vec<String> =
        fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    eprintln!("it took {} s", started.elapsed().as_secs());
    println!(
        "{{\"bytes\": {}, \"size\": {}, \"names\": {:?}, \"missing\": {:?}}}",
        picture.len(),
        fs::metadata(&arguments[1]).unwrap().len(),
        names,
        fs::write("/new.txt", "x").unwrap_err().kind().to_string(),
    );
}
