//! Asks a server for its version, with the stubs that tonic-prost-build makes.
use std::{env, error::Error};

use tonic::{Request, transport::Endpoint};

pub mod rlm_v1 {
    tonic::include_proto!("rlm.v1");
}

use rlm_v1::{GetServerInfoRequest, server_service_client::ServerServiceClient};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let channel = Endpoint::new(format!("http://{}", env::var("RLM_SERVER")?))?.connect().await?;
    let mut request = Request::new(GetServerInfoRequest {});
    let key = format!("Bearer {}", env::var("RLM_API_KEY")?);
    request.metadata_mut().insert("authorization", key.parse()?);
    let info = ServerServiceClient::new(channel).get_server_info(request).await?.into_inner();
    println!("{}", info.version);
    Ok(())
}
