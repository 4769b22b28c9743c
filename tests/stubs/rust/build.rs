//! Makes the stubs with tonic-prost-build, which asks the protoc on the PATH.
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let proto = PathBuf::from(env::var("PROTO")?);
    let files: Vec<PathBuf> = fs::read_dir(proto.join("rlm/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    tonic_prost_build::configure().compile_protos(&files, &[proto])?;
    Ok(())
}
