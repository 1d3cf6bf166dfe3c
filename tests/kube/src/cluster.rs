//! etcd and kube-apiserver on loopback, as long as a test needs them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::{asset, output, wait_until};

/// Until a server answers, on a machine that is busy.
const START: Duration = Duration::from_secs(60);
/// Until an API server heeds a policy that is new.
const POLICY_COUNTS: Duration = Duration::from_secs(30);
/// The admin of these tests: what `kubectl` shows.
const ADMIN_TOKEN: &str = "admin-of-the-tests";
/// Where the manifests put wice.
pub const NAMESPACE: &str = "wice";

/// A server of its own process. Dropping it ends it.
pub struct Server {
    name: &'static str,
    child: Child,
}

impl Server {
    fn start(name: &'static str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        Ok(Self { name, child })
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("{} may still run: {error}", self.name);
        }
    }
}

/// Where a cluster runs.
pub struct Place {
    /// Where the API listens.
    pub ip: Ipv4Addr,
    /// Ports of the API, of etcd's clients and of etcd's peers.
    pub ports: [u16; 3],
    /// A command that will run there.
    pub command: Box<dyn Fn(&Path) -> Command + Send + Sync>,
}

impl Place {
    /// This machine's loopback interface, at ports that are free.
    fn here() -> Result<Self> {
        let ip = Ipv4Addr::LOCALHOST;
        Ok(Self {
            ip,
            ports: [free_port(ip)?, free_port(ip)?, free_port(ip)?],
            command: Box::new(|program| Command::new(program)),
        })
    }
}

/// A control plane without anything that it controls: no kubelet, no scheduler, no controller.
pub struct Cluster {
    folder: PathBuf,
    place: Place,
    address: SocketAddr,
    /// Those that run; the API server last.
    etcd: Option<Server>,
    api: Option<Server>,
}

impl Cluster {
    /// Starts both on 127.0.0.1, with Kilo's kind of Peers.
    pub fn start() -> Result<Self> {
        Self::start_at(Place::here()?)
    }

    /// The same elsewhere.
    pub fn start_at(place: Place) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("wice-kube-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let etcd = Server::start("etcd", &mut etcd(&folder, &place)?, &folder)?;
        let address = SocketAddr::from((place.ip, place.ports[0]));
        let mut cluster = Self {
            folder,
            place,
            address,
            etcd: Some(etcd),
            api: None,
        };
        cluster.write_keys()?;
        cluster.start_api()?;
        cluster.prepare()?;
        Ok(cluster)
    }

    /// Applies an overlay of the manifests, as an operator does.
    pub fn install(&self, overlay: &str) -> Result<()> {
        self.kubectl(&["apply", "-k", &overlay_folder(overlay)])
            .map(drop)
    }

    /// Waits until an admission policy that is new is heeded, which takes an API server a moment: until `token` may no more
    /// label an object (kind and name), which no policy of ours allows.
    pub fn wait_for_policy(&self, token: &str, [kind, name]: [&str; 2]) -> Result<()> {
        let mut number = 0;
        wait_until("the policy counts", POLICY_COUNTS, || {
            number += 1;
            let label = format!("tried={number}");
            let label = ["label", kind, name, "--overwrite", &label];
            self.kubectl_at(self.address, token, &label)
                .is_err_and(|error| error.to_string().contains("only annotations"))
        })?;
        Ok(())
    }

    /// Where the API listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://` and the address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The authority of the API's certificate.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("certs/apiserver.crt")
    }

    /// The processes of etcd and of the API server, if it runs.
    pub fn processes(&self) -> impl Iterator<Item = u32> {
        [self.etcd.as_ref(), self.api.as_ref()]
            .into_iter()
            .flatten()
            .map(Server::id)
    }

    /// A file in the cluster's own folder.
    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// Ends the API server, as a crash would.
    pub fn stop_api(&mut self) {
        self.api = None;
    }

    /// Starts it again, at the same address, and waits until it is ready.
    pub fn start_api(&mut self) -> Result<()> {
        let mut server = self.api_at(self.address)?;
        self.until_ready(self.address, &mut server)?;
        self.api = Some(server);
        Ok(())
    }

    /// A second one on the same data, at a port of its own; and its address.
    pub fn second_api(&self) -> Result<(Server, SocketAddr)> {
        let address = SocketAddr::from((self.address.ip(), free_port(self.place.ip)?));
        let mut server = self.api_at(address)?;
        self.until_ready(address, &mut server)?;
        Ok((server, address))
    }

    /// `kubectl` as the admin.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_at(self.address, ADMIN_TOKEN, arguments)
    }

    /// The same towards another API server of this cluster.
    pub fn kubectl_as_admin_at(&self, address: SocketAddr, arguments: &[&str]) -> Result<String> {
        self.kubectl_at(address, ADMIN_TOKEN, arguments)
    }

    /// `kubectl` towards an API server of this cluster, by a token.
    pub fn kubectl_at(
        &self,
        address: SocketAddr,
        token: &str,
        arguments: &[&str],
    ) -> Result<String> {
        let mut kubectl = (self.place.command)(&asset("kubectl")?);
        kubectl
            .env_clear()
            .env("HOME", &self.folder)
            .arg(format!("--server=https://{address}"))
            .arg(format!(
                "--certificate-authority={}",
                self.ca_file().display()
            ))
            .arg(format!("--token={token}"))
            .args(arguments);
        output(&mut kubectl)
    }

    /// Makes objects, or changes them.
    pub fn apply(&self, objects: &str) -> Result<()> {
        let path = self.file("objects.yaml", objects)?;
        self.kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            &path.to_string_lossy(),
        ])
        .map(drop)
    }

    /// Makes a Node with these annotations, all at once.
    pub fn node(&self, name: &str, pod_cidr: &str, annotations: &[(&str, &str)]) -> Result<()> {
        let annotations: serde_json::Map<String, serde_json::Value> = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        let node = serde_json::json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
        });
        self.apply(&node.to_string())
    }

    /// Sets an annotation of a Node as a person or another program does; an empty value removes it.
    pub fn annotate(&self, node: &str, name: &str, value: &str) -> Result<()> {
        let entry = if value.is_empty() {
            format!("{name}-")
        } else {
            format!("{name}={value}")
        };
        self.kubectl(&["annotate", "--overwrite", "node", node, &entry])
            .map(drop)
    }

    /// An annotation of a Node.
    pub fn annotation(&self, node: &str, name: &str) -> Result<Option<String>> {
        let text = self.kubectl(&["get", "node", node, "-o", "json"])?;
        let node: serde_json::Value = serde_json::from_str(&text)?;
        Ok(node["metadata"]["annotations"][name]
            .as_str()
            .map(str::to_owned))
    }

    /// A file with the admin's token.
    pub fn admin_token(&self) -> Result<PathBuf> {
        self.file("admin-token", ADMIN_TOKEN)
    }

    /// A token as the pod of wice on this Node has: of its ServiceAccount, bound to the pod, which names the Node.
    pub fn token(&self, node: &str) -> Result<String> {
        let pod = format!("wice-{node}");
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE},
            "spec": {
                "nodeName": node, "serviceAccountName": "wice", "automountServiceAccountToken": false,
                "containers": [{"name": "wice", "image": "wice"}],
            },
        });
        self.apply(&object.to_string())?;
        let token = self.kubectl(&[
            "create",
            "token",
            "wice",
            "--namespace",
            NAMESPACE,
            "--bound-object-kind",
            "Pod",
            "--bound-object-name",
            &pod,
        ])?;
        Ok(token.trim().to_owned())
    }

    /// A token of a ServiceAccount of wice's namespace, bound to nothing.
    pub fn account_token(&self, account: &str) -> Result<String> {
        let token = self.kubectl(&["create", "token", account, "--namespace", NAMESPACE])?;
        Ok(token.trim().to_owned())
    }

    fn write_keys(&self) -> Result<()> {
        let key = rcgen::KeyPair::generate()?;
        self.file("sa.key", &key.serialize_pem())?;
        self.file("sa.pub", &key.public_key_pem())?;
        self.file(
            "tokens.csv",
            &format!("{ADMIN_TOKEN},admin,admin,system:masters\n"),
        )?;
        Ok(())
    }

    fn api_at(&self, address: SocketAddr) -> Result<Server> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = (self.place.command)(&asset("kube-apiserver")?);
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.place.ports[1]),
            // A test of what has been forgotten need not wait five minutes for it.
            "--etcd-compaction-interval=2s".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=RBAC".into(),
            format!("--bind-address={}", address.ip()),
            format!("--secure-port={}", address.port()),
            format!("--advertise-address={}", address.ip()),
            // There is nobody to tell where the API is.
            "--endpoint-reconciler-type=none".into(),
            format!("--cert-dir={}", file("certs")),
            // Its controller, which makes what this asks for, does not run.
            "--disable-admission-plugins=ServiceAccount".into(),
        ]);
        Server::start("kube-apiserver", &mut command, &self.folder)
    }

    fn until_ready(&self, address: SocketAddr, server: &mut Server) -> Result<()> {
        let log = self.folder.join("kube-apiserver.log");
        let mut ended = false;
        let ready = wait_until("kube-apiserver is ready", START, || {
            ended = server.has_ended();
            ended
                || self
                    .kubectl_at(address, ADMIN_TOKEN, &["get", "--raw", "/readyz"])
                    .is_ok()
        });
        if ended || ready.is_err() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<&str> = text.lines().rev().take(10).collect();
            bail!("kube-apiserver does not serve: {last:#?}");
        }
        Ok(())
    }

    /// What every test has.
    fn prepare(&self) -> Result<()> {
        self.apply(include_str!("prepared.yaml"))?;
        for kind in ["peers.kilo.squat.ai", "podmonitors.monitoring.coreos.com"] {
            self.kubectl(&[
                "wait",
                "--for=condition=established",
                "--timeout=30s",
                &format!("crd/{kind}"),
            ])?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.api = None;
        self.etcd = None;
        if std::thread::panicking() {
            eprintln!("the cluster's logs are in {}", self.folder.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }
}

/// Where an overlay of the manifests is.
#[must_use]
pub fn overlay_folder(overlay: &str) -> String {
    format!(
        "{}/../../manifests/kubernetes/overlays/{overlay}",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn etcd(folder: &Path, place: &Place) -> Result<Command> {
    let [_, port, peers] = place.ports;
    let mut command = (place.command)(&asset("etcd")?);
    command.args([
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls=http://127.0.0.1:{port}"),
        format!("--advertise-client-urls=http://127.0.0.1:{port}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
        format!("--initial-cluster=default=http://127.0.0.1:{peers}"),
        // Nothing here outlives the test.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=error".to_owned(),
    ]);
    Ok(command)
}

fn free_port(ip: Ipv4Addr) -> Result<u16> {
    Ok(TcpListener::bind((ip, 0))?.local_addr()?.port())
}
