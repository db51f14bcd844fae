#!/usr/bin/env python3
"""Packs text of free software that is installed on a Debian machine into one file to train on.

  pack_corpus.py -o corpus.tar.xz --megabytes 80

Every kind of text is a domain and a folder of the archive. Taken are files of Debian's own packages
of the main section (free by Debian's guidelines) alone; `card.json` in the archive lists domains,
bytes and packages with their versions. Equal machines give equal archives.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

# Domain -> (folder, suffix of the file's name before .gz) in the order in which they are searched.
DOMAINS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "c": [("/usr/include", (".h",)), ("/usr/lib/gcc", (".h",)), ("/usr/share/doc", (".c",))],
    "cpp": [("/usr/include/boost", (".hpp", ".ipp")), ("/usr/include/c++", ("", ".h", ".tcc")),
            ("/usr/include/eigen3", ("", ".h"))],
    "python": [("/usr/lib/python3.11", (".py",)), ("/usr/lib/python3/dist-packages", (".py",)),
               ("/usr/lib/python3.12", (".py",))],
    "perl": [("/usr/share/perl", (".pm", ".pl", ".pod")), ("/usr/share/perl5", (".pm", ".pl", ".pod"))],
    "pascal": [("/usr/share/fpcsrc", (".pp", ".pas", ".inc"))],
    "ada": [("/usr/lib/gcc", (".ads", ".adb"))],
    "manual": [("/usr/share/man/man" + section, ("." + section, f".{section}ssl", f".{section}posix"))
               for section in "12345678"],
    "translated": [(f"/usr/share/man/{language}", tuple(f".{s}" for s in "12345678"))
                   for language in ("de", "es", "fr", "ja", "pl", "pt", "ru", "zh_CN")],
    "prose": [("/usr/share/vim", (".txt",)), ("/usr/share/doc", (".txt", ".md", ".rst", "README", "NEWS"))],
    "changelog": [("/usr/share/doc", ("changelog.Debian", "changelog"))],
    "licence": [("/usr/share/doc", ("copyright",)), ("/usr/share/common-licenses", ("",))],
    "script": [("/usr/share/tcltk", (".tcl",)), ("/usr/share/vim", (".vim",)),
               ("/usr/share/cmake-3.25", (".cmake",)), ("/usr/share/bash-completion", ("",)),
               ("/usr/share/postgresql", (".sql",)), ("/usr/share/autoconf", (".m4",))],
}
SMALLEST, LARGEST = 1_500, 200_000  # bytes of a file; of a longer one the beginning is taken


def free_packages() -> dict[str, str]:
    """Version by name of the installed packages of Debian's main section."""
    rows = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Section}\t${Maintainer}\n"],
        check=True, capture_output=True, text=True).stdout.splitlines()
    packages = {}
    for row in rows:
        name, version, section, maintainer = row.split("\t")
        from_debian = "debian.org" in maintainer or "debian" in maintainer.lower() or any(
            Path(f"/usr/share/doc/{name}/{log}").exists() for log in ("changelog.Debian.gz", "changelog.gz"))
        if from_debian and not section.startswith(("non-free", "contrib")):
            packages[name] = version
    return packages


def owned_files(packages: dict[str, str]) -> dict[str, str]:
    """Package by path, for every file of these packages."""
    owner = {}
    for listing in sorted(Path("/var/lib/dpkg/info").glob("*.list")):
        name = listing.stem.split(":")[0]
        if name in packages:
            for path in listing.read_text().splitlines():
                owner.setdefault(path, name)
    return owner


def text_of(path: str) -> bytes | None:
    """The file's text, or nothing where it is no text of a useful size."""
    file = Path(path)
    if not file.is_file() or file.is_symlink():
        return None
    data = file.read_bytes()
    if path.endswith(".gz"):
        data = gzip.decompress(data)
    data = data[:LARGEST]
    if len(data) == LARGEST:
        data = data[:data.rfind(b"\n") + 1]
    if len(data) < SMALLEST or b"\0" in data:
        return None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return data


def takes(name: str, suffix: str) -> bool:
    if suffix == "":
        return "." not in name
    return name.endswith(suffix) or (not suffix.startswith(".") and name.startswith(suffix))


def collect(domain: str, owner: dict[str, str], most: int, taken: set[bytes]):
    """Files of one domain up to `most` bytes, in the order of a hash of their paths."""
    candidates = []
    for path, package in owner.items():
        name = path.rsplit("/", 1)[-1].removesuffix(".gz")
        if any(path.startswith(folder + "/") and any(takes(name, suffix) for suffix in suffixes)
               for folder, suffixes in DOMAINS[domain]):
            candidates.append((hashlib.sha256(path.encode()).digest(), path, package))
    chosen, size = [], 0
    for _, path, package in sorted(candidates):
        if size >= most:
            break
        text = text_of(path)
        if text is None:
            continue
        # Copies of a file, and files that begin and end alike, count once.
        digest = hashlib.sha256(text[:600] + text[-600:]).digest()
        if digest in taken:
            continue
        taken.add(digest)
        chosen.append((path, package, text))
        size += len(text)
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=80, help="of text, in equal parts (default 80)")
    arguments = parser.parse_args()

    packages = free_packages()
    owner = owned_files(packages)
    most = int(arguments.megabytes * 1e6 / len(DOMAINS))
    card = {"domains": {}, "packages": {}}
    with tarfile.open(arguments.output, "w:xz", preset=6) as archive:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

        taken: set[bytes] = set()
        for domain in DOMAINS:
            files = collect(domain, owner, most, taken)
            for path, package, text in files:
                add(f"{domain}{path.removesuffix('.gz')}", text)
                card["packages"][package] = packages[package]
            card["domains"][domain] = {
                "files": len(files), "bytes": sum(len(text) for _, _, text in files),
                "packages": sorted({package for _, package, _ in files})}
            print(domain, {k: v if k != "packages" else len(v) for k, v in card["domains"][domain].items()},
                  file=sys.stderr)
        card["packages"] = dict(sorted(card["packages"].items()))
        add("card.json", json.dumps(card, indent=1).encode())
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
