"""Link the top-level rooms below src/speedysnn, where static checkers look for them (git ignores the links)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

for room in ("convert", "analysis", "finetune"):
    link = ROOT / "src" / "speedysnn" / room
    if not link.is_symlink():
        link.symlink_to(Path("..") / ".." / room, target_is_directory=True)
