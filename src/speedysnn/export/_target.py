"""What exporters share: where a file may be written, and the warning about what a reader must know."""

from pathlib import Path

from speedysnn.errors import ArtifactError


class ExportWarning(UserWarning):
    """Something that the reader of an exported file must know; the command line prints it as a note."""


def check_target(target: Path, suffix: str, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        ArtifactError: another suffix, a folder, or a file that is there while `overwrite` is off.
    """
    if target.suffix != suffix:
        raise ArtifactError(f"{target}: expected a file name that ends in {suffix}")
    if target.is_dir():
        raise ArtifactError(f"{target}: a folder is there; give a file name")
    if target.exists() and not overwrite:
        raise ArtifactError(f"{target}: a file is there already; choose another name, or pass overwrite")
    if not target.absolute().parent.is_dir():
        raise ArtifactError(f"{target}: its folder does not exist")
