#!/bin/sh
# Builds etcd, kube-apiserver, kubectl and helm, and Kilo's kg when asked, as ordinary Go dependencies into a cache, for tests against the real
# ones. Prints the folder. What is there already is not built again; what KUBEBUILDER_ASSETS has is used as it is.
set -eu
KUBERNETES=${KUBERNETES:-1.36.4}
ETCD=${ETCD:-3.6.8}
HELM=${HELM:-3.22.0}
# The first commit after 0.7.0: its tags are none that Go takes.
KILO=${KILO:-944dff57}
assets=${KUBEBUILDER_ASSETS:-${XDG_CACHE_HOME:-$HOME/.cache}/wice/kube-$KUBERNETES-etcd-$ETCD}
what=${*:-etcd kube-apiserver kubectl helm}
mkdir -p "$assets"

# Go itself comes as a module, too, where the one that is there is older than Kubernetes wants. From 1.21 on it knows that by
# itself; for Debian's it is unpacked here, and its programs are made executable, which modules do not keep.
GO=${GO:-1.26.8}
have=$(go env GOVERSION | sed 's/^go//')
older() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ] && [ "$1" != "$2" ]; }
if older "$have" 1.21; then
  toolchain=$assets/go-$GO
  if ! [ -x "$toolchain/bin/go" ]; then
    module=golang.org/toolchain@v0.0.1-go$GO.linux-$(go env GOARCH)
    folder=$(cd "$assets" && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p')
    [ -n "$folder" ] || { echo "$module cannot be had: install Go $GO" >&2; exit 1; }
    rm -rf "$toolchain.new"
    cp -r "$folder" "$toolchain.new"
    chmod -R u+w "$toolchain.new"
    chmod +x "$toolchain.new"/bin/* "$toolchain.new"/pkg/tool/*/*
    mv "$toolchain.new" "$toolchain"
  fi
  PATH=$toolchain/bin:$PATH
  export GOROOT="$toolchain"
elif older "$have" "$GO"; then
  export GOTOOLCHAIN="go$GO"
fi

# One module a program: their requirements need not agree.
build() { # NAME MODULE VERSION PACKAGE LDFLAGS
  [ -x "$assets/$1" ] && return
  folder=$assets/src/$1
  mkdir -p "$folder"
  cd "$folder"
  rm -f go.mod go.sum
  go mod init wice.test/assets 2>/dev/null
  # A commit is as good as a tag: the proxy says which version it is.
  found=$(go mod download -json "$2@$3")
  version=$(echo "$found" | sed -n 's/^\t"Version": "\(.*\)",*$/\1/p')
  if [ "$2" = k8s.io/kubernetes ]; then
    # k8s.io/kubernetes names its staging modules by v0.0.0 and replaces them by its own folders: here each is the release's.
    gomod=$(echo "$found" | sed -n 's/^\t"GoMod": "\(.*\)",*$/\1/p')
    sed -n 's|^\t\(k8s\.io/[^ ]*\) => \./staging.*$|\1|p' "$gomod" | while read -r module; do
      go mod edit -replace "$module=$module@v0.${KUBERNETES#1.}"
    done
    go mod edit -godebug=default=go1.26
  fi
  go mod edit -tool "$4" -require "$2@$version"
  go mod tidy -e >&2
  CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $5" -o "$assets/$1.new" "$4" >&2
  mv "$assets/$1.new" "$assets/$1"
}

for program in $what; do
  case $program in
  etcd) build etcd go.etcd.io/etcd/server/v3 "v$ETCD" go.etcd.io/etcd/server/v3 "" ;;
  kube-apiserver) build kube-apiserver k8s.io/kubernetes "v$KUBERNETES" k8s.io/kubernetes/cmd/kube-apiserver "-X k8s.io/component-base/version.gitVersion=v$KUBERNETES" ;;
  kubectl) build kubectl k8s.io/kubernetes "v$KUBERNETES" k8s.io/kubernetes/cmd/kubectl "-X k8s.io/component-base/version.gitVersion=v$KUBERNETES" ;;
  helm) build helm helm.sh/helm/v3 "v$HELM" helm.sh/helm/v3/cmd/helm "-X helm.sh/helm/v3/internal/version.version=v$HELM" ;;
  kg) build kg github.com/squat/kilo "$KILO" github.com/squat/kilo/cmd/kg "" ;;
  *) echo "$program: etcd, kube-apiserver, kubectl, helm or kg" >&2; exit 64 ;;
  esac
done
echo "$assets"
