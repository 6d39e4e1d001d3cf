"""Whether a process that says nothing is at work: the time that it has had of the processor tells it from one that hangs.

Importing a framework and compiling a program take as long as they take, and say nothing meanwhile. What hangs waits for
something that never comes, and uses no processor; what was stopped uses none either. What turns in a circle does, and is
given up after PATIENCE times as long.
"""

import time
from dataclasses import dataclass, field

import psutil

PATIENCE = 10
"""How many times its timeout a process may be silent while it works."""
LOOK = 0.5
"""Seconds between two looks at a silent process."""
LEAST = 0.01
"""Seconds of the processor that are work, between two looks: on a crowded machine a process gets few."""


@dataclass
class Life:
    """What is known of a process's life. `patient`: whether it may be silent as long as it works."""

    pid: int
    timeout: float
    patient: bool = True
    word: str = "sign of life"
    """What is waited for."""
    spoke: float = field(default_factory=time.monotonic)
    """When it last said something."""
    worked: float = field(default_factory=time.monotonic)
    """When it was last seen to speak, or to have worked."""
    looked: float = field(default_factory=time.monotonic)
    used: float | None = None

    def heard(self, *, patient: bool) -> None:
        """It has said something; `patient`: whether what it does next may take long in silence."""
        self.spoke = self.worked = time.monotonic()
        self.patient = patient

    def over(self) -> str:
        """Why it is given up; nothing while it is not. Called often, it looks seldom."""
        now = time.monotonic()
        if self.patient and min(now - self.looked, now - self.spoke) >= LOOK:
            self.looked, before = now, self.used
            self.used = processor_seconds(self.pid)
            if before is not None and self.used - before >= LEAST:
                self.worked = now
        if now - self.worked > self.timeout:
            return f"gave no {self.word} for {self.timeout:g} seconds"
        if now - self.spoke > PATIENCE * self.timeout:
            return f"worked for {PATIENCE * self.timeout:g} seconds and gave no {self.word}"
        return ""


def processor_seconds(pid: int) -> float:
    """What a process has used of the processor, and its children, of whom those that have ended are counted by Linux alone."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            try:
                times = each.cpu_times()
            except psutil.Error:
                continue  # it has just ended
            total += times.user + times.system
            if each.pid == pid:
                total += times.children_user + times.children_system
    except psutil.Error:
        return total
    return total
