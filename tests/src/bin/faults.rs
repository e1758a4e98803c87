//! The fault run as a program. `cargo xtask faults` builds it, brings up a broker for it, and calls it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use postrider_conformance::proxy::Proxy;
use postrider_system_tests::faults::driver::{self, Run};
use postrider_system_tests::faults::totals::Totals;
use postrider_system_tests::faults::{CLAIM_TIMEOUT, Case, Size, consumer, publisher};

/// Publishes and consumes in processes of their own, kills them and the broker under load, and compares what was confirmed
/// with what was handled.
#[derive(Parser)]
#[command(name = "faults", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    /// The processes of the run; the run starts them itself.
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Args)]
struct Options {
    /// The broker to harm; the variable `POSTRIDER_TEST_<BROKER>_URL` says where it is
    #[arg(long, default_value = "nats")]
    broker: String,
    /// 20,000 messages, 3 kills of the broker and 3 of consumers, a pause, a cut, a change of members (the default)
    #[arg(long, conflicts_with = "long")]
    short: bool,
    /// 200,000 messages, 10 kills of the broker (NATS: 20) and 20 of consumers, 5 pauses, cuts and changes of members
    #[arg(long)]
    long: bool,
    /// How many messages, instead
    #[arg(long, value_name = "N")]
    messages: Option<u32>,
    /// The schedule of kills; the run prints the one that it took
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// What is done
    #[arg(long, default_value = "base")]
    case: Cases,
    /// Write the totals there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Cases {
    /// Kills of the broker and of consumers, pauses, cuts, changes of members
    Base,
    /// The same, with messages that never succeed
    Poison,
    /// The dead-letter channel takes nothing for 20 s, while messages never succeed and consumers are killed
    DlqDown,
    /// One consumer with a durable idempotency store, killed together with it; the broker is killed, too
    StoreKill,
    /// Messages that end the process which handles them
    Abort,
    /// Members come and go each second, half of them by a kill; on Kafka by both group protocols
    Storm,
    /// All of these but the storm, one after the other
    All,
}

impl Cases {
    fn cases(self) -> Vec<Case> {
        vec![match self {
            Self::Base => Case::Base,
            Self::Poison => Case::Poison,
            Self::DlqDown => Case::DlqDown,
            Self::StoreKill => Case::StoreKill,
            Self::Abort => Case::Abort,
            Self::Storm => Case::Storm,
            Self::All => return Case::ALL.to_vec(),
        }]
    }
}

#[derive(Subcommand)]
enum Role {
    /// Publishes orders
    #[command(hide = true)]
    Publish {
        #[command(flatten)]
        process: Process,
        #[arg(long)]
        messages: u32,
    },
    /// Handles orders
    #[command(hide = true)]
    Consume {
        #[command(flatten)]
        process: Process,
        #[arg(long)]
        case: Cases,
    },
}

#[derive(Args)]
struct Process {
    #[arg(long)]
    url: String,
    #[arg(long)]
    folder: PathBuf,
    #[arg(long)]
    name: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.role {
        Some(Role::Publish { process, messages }) => {
            publisher::run(&process.url, &process.folder, &process.name, messages).await.map(|()| true)
        }
        Some(Role::Consume { process, case }) => match case.cases()[..] {
            [case] => consumer::run(&process.url, &process.folder, &process.name, case).await.map(|()| true),
            _ => Err(anyhow::anyhow!("a process does one case")),
        },
        None => run(cli.options).await,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The options of the URL: claims that end within the run's patience, and what was cut off is sent again (Kafka's client always
/// does).
fn url_options(broker: &str) -> String {
    let timeout = CLAIM_TIMEOUT;
    match broker {
        // a member that vanished is noticed by its missing heartbeats
        "rabbitmq" => format!("heartbeat={}s&on_unknown=resend", timeout.as_secs()),
        "nats" => format!("claim_timeout={}ms&on_unknown=resend", timeout.as_millis()),
        _ => format!("claim_timeout={}ms", timeout.as_millis()),
    }
}

/// A proxy in front of the broker, and the URL that leads through it. Kafka's clients connect to where the broker says it is, so
/// there is none for Kafka.
async fn proxied(broker: &str, url: &str) -> Result<(Option<Proxy>, String)> {
    let parsed = postrider::BrokerUrl::parse(url)?;
    let (Some(host), false) = (parsed.hosts().first(), broker == "kafka") else {
        return Ok((None, url.to_owned()));
    };
    let port = host.port.with_context(|| format!("the URL of {broker} names no port"))?;
    let proxy = Proxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let address = format!("{}:{port}", host.name);
    let through = url.replacen(&address, &proxy.address().to_string(), 1);
    Ok((Some(proxy), through))
}

async fn run(options: Options) -> Result<bool> {
    let variable = format!("POSTRIDER_TEST_{}_URL", options.broker.to_uppercase());
    let url = std::env::var(&variable)
        .with_context(|| format!("{variable} isn't set; start the fault run by `cargo xtask faults`"))?;
    let seed = options.seed.unwrap_or_else(|| postrider::Env::system().random());
    let mut size = if options.long { Size::long(&options.broker) } else { Size::SHORT };
    size.messages = options.messages.unwrap_or(size.messages);
    let storms: &[(&str, &str)] = if options.broker == "kafka" {
        &[("-classic", "&group_protocol=classic"), ("-consumer", "&group_protocol=consumer")]
    } else {
        &[("", "")]
    };
    let runs = options.case.cases().into_iter().flat_map(|case| {
        let variants = if case == Case::Storm { storms } else { &[("", "")] };
        variants.iter().map(move |variant| (case, *variant))
    });
    let target = std::env::current_exe()?.ancestors().nth(2).map(PathBuf::from).unwrap_or_default();
    let mut totals = Vec::new();
    for (case, (variant, extra)) in runs {
        let mut size = size.of(case);
        let broker_url = url.clone();
        let (proxy, url) = proxied(&options.broker, &url).await?;
        if proxy.is_none() {
            size.cuts = 0;
        }
        eprintln!(
            "faults: {} {}{variant}: {} messages, {} kills of the broker, {} of consumers, {} pauses, {} cuts, {} changes of members, {} outages of the dead letters, seed {seed}",
            options.broker,
            case.name(),
            size.messages,
            size.broker_kills,
            size.consumer_kills,
            size.pauses,
            size.cuts,
            size.replaced,
            size.outages,
        );
        let joint = if url.contains('?') { '&' } else { '?' };
        let tenant = format!("faults-{:x}", postrider::Env::system().random());
        let case = driver::run(Run {
            broker: options.broker.clone(),
            broker_url,
            tenant: tenant.clone(),
            url: format!("{url}{joint}tenant={tenant}&{}{extra}", url_options(&options.broker)),
            proxy,
            case,
            size,
            seed,
            folder: target.join("faults").join(format!("{}-{}{variant}", options.broker, case.name())),
        })
        .await?;
        println!("{case}");
        totals.push(case);
    }
    let totals = Totals::sum(&options.broker, seed, totals);
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&totals)?;
        std::fs::write(file, json + "\n").with_context(|| format!("{} can't be written", file.display()))?;
    }
    println!("{}", if totals.ok { "nothing lost" } else { "FAILED" });
    Ok(totals.ok)
}
