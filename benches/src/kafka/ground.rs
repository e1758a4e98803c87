use anyhow::Result;
use crate::job::Job;
pub(crate) async fn clear(_: &Job) -> Result<()> { todo!() }
pub(crate) async fn rewind(_: &Job) -> Result<()> { todo!() }
pub(crate) async fn stored(_: &Job) -> Result<(u64,u64)> { todo!() }
pub(crate) async fn left(_: &Job) -> Result<u64> { todo!() }
pub(crate) fn version() -> String { todo!() }
