"""`workbench generate PROMPT`: complete one or more prompts and print the text.

The text goes to standard output and the timings to standard error, so that the text can be piped.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.cli.delegate import Commands
    from workbench.request import RequestOutput


def add_parser(commands: Commands) -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser("generate", help="complete prompts and print the text")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")
    parser.add_argument("--model", default="tinypy", help="embedded name, folder or hub id")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 … (default: the best)")
    parser.add_argument("--dtype", default=None, help="float32, bfloat16 … (default: fits)")
    proposer = "who drafts tokens: ngram, suffix, medusa, eagle3, draft, or a folder"
    parser.add_argument("--proposer", default=None, help=proposer)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--min-p", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="repeatable")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate for all prompts in one batch, then print them in order."""
    from workbench.llm import LLM
    from workbench.sampling_params import SamplingParams

    params = SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        stop=tuple(args.stop),
    )
    chosen = {k: v for k in ("device", "dtype", "proposer") if (v := getattr(args, k)) is not None}
    llm = LLM(args.model, **chosen)
    for prompt, output in zip(
        args.prompts, llm.generate(args.prompts, params, progress=False), strict=True
    ):
        print(prompt + output.outputs[0].text)
        print(timing_line(output), file=sys.stderr)
    return 0


def timing_line(output: RequestOutput) -> str:
    """Return one line: tokens, why it ended, time to first token, time per token after it, and how
    long accepted drafts were where there were any."""
    done, metrics = output.outputs[0], output.metrics
    parts = [f"{len(done.token_ids)} tokens ({done.finish_reason})"]
    if metrics.ttft is not None:
        parts.append(f"first after {metrics.ttft * 1e3:.1f} ms")
    if metrics.tpot is not None:
        parts.append(f"then {metrics.tpot * 1e3:.2f} ms each")
    if metrics.acceptance_length is not None:
        parts.append(f"{metrics.acceptance_length:.2f} tokens a pass with a draft")
    return f"[{output.request_id}] " + ", ".join(parts)
