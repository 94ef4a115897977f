"""Seconds and memory of export and analysis for a large language model of which only the shapes exist.

The model is built on torch's meta device: it has no weights, so that what is measured is l0prune alone.

    python benchmarks/scale.py --layers 32        # the shape of Llama-7B: under 60 s and 2 GB on one thread
    l0prune inspect benchmarks.scale:llama        # the cost table of the same model, from the root of the repository
"""

import argparse
import resource
import time

import torch
from torch import Tensor, nn

from l0prune.flow.trace import aliases_of, trace_program
from l0prune.look.capture import capture

__all__ = ["llama", "main"]

TOKENS = 128


def llama(layers: int = 32) -> tuple[nn.Module, dict[str, Tensor]]:
    """A Llama of 7B shape (hidden 4096, intermediate 11008, 32 heads, vocabulary 32000) on the meta device, and its input."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        use_cache=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
        return model, {
            "input_ids": torch.zeros(2, TOKENS, dtype=torch.int64)
        }  # a mask would be read, and there are no numbers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="Layers of the model; 32 in Llama-7B.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model, inputs = llama(chosen.layers)
    wall, cpu = time.perf_counter(), time.process_time()
    captured = capture(model, inputs)
    exported, exported_cpu = time.perf_counter(), time.process_time()
    flow = trace_program(captured, aliases=aliases_of(model))
    traced, traced_cpu = time.perf_counter(), time.process_time()
    print(flow.summary())
    print(f"{flow.dense_cost('params') / 1e9:.2f} G parameters, {chosen.layers} layers, {chosen.threads} thread(s)")
    print(f"export    {exported - wall:6.1f} s ({exported_cpu - cpu:.1f} s of processor time)")
    print(f"analysis  {traced - exported:6.1f} s ({traced_cpu - exported_cpu:.1f} s)")
    print(f"together  {traced - wall:6.1f} s ({traced_cpu - cpu:.1f} s)")
    print(f"memory    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GB at most, libraries included")


if __name__ == "__main__":
    main()
