"""A file for HDF5 that never fails in the midst of it: what went wrong is told afterwards.

HDF5 does not survive a write that fails. A full disk leaves its caches unwritable, closing the file
fails too, and the process ends in a segmentation fault (h5py #914). So its writes always succeed
here. Once the disk has refused one, that and all later ones are kept in memory, so that what HDF5
reads back is what it wrote; the caller asks for `failure` after each of its own steps, stops, and
drops the file.
"""

import io
import os
from pathlib import Path

PAGE = 1 << 16


class PatientFile(io.RawIOBase):
    """A new file at `path`, to be given to h5py; raises `OSError` if it cannot be made.

    Nothing is raised from then on but by `close`: exceptions must not cross HDF5's callbacks.
    Signals can raise one between any two lines of the main thread, so that another one has to run
    HDF5. `name` is what errors call the file.
    """

    def __init__(self, path: Path, name: Path) -> None:
        super().__init__()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._name, self._at, self._end = str(name), 0, 0
        self._kept: dict[int, bytearray] = {}  # pages that are newer than on the disk
        self.failure: OSError | None = None
        """The first thing that went wrong, or None."""

    def write(self, data: object) -> int:
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        start, self._at = self._at, self._at + len(view)
        self._end = max(self._end, self._at)
        done = 0
        try:
            while self.failure is None and done < len(view):
                done += os.pwrite(self._handle, view[done:], start + done)
        except OSError as error:
            self._fail(error)
        if done < len(view):
            self._keep(start + done, view[done:])
        return len(view)

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        start, self._at = self._at, self._at + len(view)
        done = 0
        try:
            while done < len(view) and (piece := os.pread(self._handle, len(view) - done, start)):
                view[done : done + len(piece)] = piece
                done, start = done + len(piece), start + len(piece)
        except OSError as error:
            self._fail(error)
        view[done:] = bytes(len(view) - done)  # beyond the end, as in a file with holes
        for number in self._pages(self._at - len(view), self._at) if self._kept else ():
            if number in self._kept:
                start, low = number * PAGE, self._at - len(view)
                first, last = max(start, low), min(start + PAGE, self._at)
                view[first - low : last - low] = self._kept[number][first - start : last - start]
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._end = self._at if size is None else size
        try:
            if self.failure is None:
                os.ftruncate(self._handle, self._end)
        except OSError as error:
            self._fail(error)
        return self._end

    def close(self) -> None:
        if not self.closed:
            super().close()
            handle, self._handle = self._handle, -1  # HDF5 may come back to a file that it lost
            os.close(handle)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _fail(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = OSError(error.errno, error.strerror, self._name)

    def _keep(self, start: int, view: memoryview) -> None:
        for number in self._pages(start, start + len(view)):
            page, begin = self._kept.get(number), number * PAGE
            if page is None:
                page = self._kept[number] = self._on_disk(begin)
            first, last = max(begin, start), min(begin + PAGE, start + len(view))
            page[first - begin : last - begin] = view[first - start : last - start]

    def _on_disk(self, begin: int) -> bytearray:
        try:
            return bytearray(os.pread(self._handle, PAGE, begin).ljust(PAGE, b"\0"))
        except OSError:
            return bytearray(PAGE)

    @staticmethod
    def _pages(start: int, stop: int) -> range:
        return range(start // PAGE, -(-stop // PAGE))
