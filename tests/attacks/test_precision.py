"""Under every way to ask PyTorch for TF32, in a process of its own: the settings are global."""

import subprocess
import sys
import textwrap

import torch

# PyTorch refuses to answer where old and new switches disagree
READ = """
import torch

def told(read):
    try:
        return read()
    except RuntimeError:
        return "disagree"

def settings():
    backends = torch.backends
    new = [backends, backends.cudnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    new += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    return [getattr(each, "fp32_precision", None) for each in new] + [
        told(torch.get_float32_matmul_precision),
        told(lambda: backends.cuda.matmul.allow_tf32),
        told(lambda: backends.cudnn.allow_tf32),
        backends.cudnn.benchmark,
    ]
"""
OLD = [
    "",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cudnn.benchmark = True",
]
NEW = [
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = 'ieee'",
]
MIXED = [f"{old}; {new}" for old in OLD[1:4] for new in NEW]
CHOICES = OLD + (NEW + MIXED if hasattr(torch.backends, "fp32_precision") else [])  # the new ones since PyTorch 2.9


def run(program):
    found = subprocess.run([sys.executable, "-c", READ + textwrap.dedent(program)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def check(choices):
    """All choices in one process: each is made, exact arithmetic entered and left, and the start put back."""
    run(f"""
        from lightning_advdef.attacks.verdict import exact_arithmetic

        def defaults():
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = False
            if hasattr(torch.backends, "fp32_precision"):
                for each in (torch.backends, torch.backends.cudnn, torch.backends.cuda.matmul):
                    each.fp32_precision = "none"

        def now_and_after_a_later_choice():
            now = settings()
            if hasattr(torch.backends, "fp32_precision"):
                torch.backends.fp32_precision = "ieee"
            return now + settings()

        defaults()
        start = settings()
        for choice in {choices!r}:
            defaults()
            assert settings() == start, choice
            exec(choice)
            expected = now_and_after_a_later_choice()
            defaults()
            exec(choice)
            with exact_arithmetic():
                inside = settings()
            assert now_and_after_a_later_choice() == expected, choice
            assert not {{"tf32", "bf16", "none", "disagree", True}} & set(inside), (choice, inside)
    """)


def test_exact_arithmetic_is_float32_whatever_was_asked_for_and_leaves_it_as_it_was():
    check(CHOICES)
