"""What can go wrong, as one tree; every error is also the builtin that it resembles.

::

    CubeclfError                    exit code 1: it failed while running
    ├── RunFailed (RuntimeError)        a process died, an export did not match, …
    │   ├── TrainingDiverged        a loss, a gradient or what is said in the end is no number
    │   └── Collapsed               in pretrain.monitors: the backbone says the same of all cuboids
    ├── Stopped                     exit code 75: asked to stop by a signal; nothing is lost
    └── InputError (ValueError)     exit code 2: the user can mend it
        ├── VolumeError                 no volume, corrupt, or of an unsupported kind
        │   ├── VolumeTooSmall          smaller than one cuboid
        │   └── VoxelSizeMissing        the file does not say, and the user did not
        ├── BrainsFileError             a YAML brains file with wrong keys or types
        ├── CellsError                  a cells file that is unreadable, empty or of one class
        │   └── CellsOutside            positions that lie outside the volume
        ├── CheckpointError             not a checkpoint, or one of another kind
        └── OutputExists (FileExistsError)

A message says what was found, what was expected and what to do, in one line.
"""

from __future__ import annotations


class CubeclfError(Exception):
    """Base of all errors that cubeclf raises on purpose."""

    exit_code = 1


class RunFailed(CubeclfError, RuntimeError):
    """Something failed while running, with valid input."""


class TrainingDiverged(RunFailed):
    """A loss, a gradient or what a network says in the end is no number."""


class Stopped(CubeclfError):
    """A signal asked for a stop, and what is needed to go on has been written."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


class InputError(CubeclfError, ValueError):
    """The input or configuration is wrong, and the user can mend it."""

    exit_code = 2


class VolumeError(InputError):
    """A path that is not a volume that can be read."""


class VolumeTooSmall(VolumeError):
    """The volume is smaller than one cuboid."""


class VoxelSizeMissing(VolumeError):
    """Neither the file nor the user says what a voxel measures."""


class BrainsFileError(InputError):
    """A brains file whose entries cannot be understood."""


class CellsError(InputError):
    """A cells file that cannot be used."""


class CellsOutside(CellsError):
    """Cell positions lie outside their volume."""


class CheckpointError(InputError):
    """A file that is not a checkpoint of the expected kind."""


class OutputExists(InputError, FileExistsError):
    """The output path exists already, and nothing is overwritten unasked."""


def require(holds: bool, setting: str, found: object, expected: str) -> None:
    """Raise an `InputError` about a setting unless a condition holds."""
    if not holds:
        raise InputError(f"{setting} is {found}, expected {expected}")
