"""python -m realcode.gpus: the memory of fine-tuning an 8B and a 14B model on 1 to 8 GPUs."""

from realcode.memory import parameter_counts, training_bytes
from realcode.pretrained import PublishedConfig
from support.report import table

# The shapes of Llama-3.1-8B and Qwen3-14B.
MODELS = {"Llama 3.1 8B": PublishedConfig(128256, 4096, 14336, 32, 32, 8, 128,
                                          tie_word_embeddings=False,
                                          architecture="LlamaForCausalLM"),
          "Qwen3 14B": PublishedConfig(151936, 5120, 17408, 40, 40, 8, 128,
                                       tie_word_embeddings=False)}
GPUS = (1, 2, 4, 8)


def gigabytes(cfg, rank, processes):
    """An estimate for pieces of 1,024 tokens, one at a time, with --recompute, in bfloat16.

    Before and after training every GPU holds the whole model, and a fifth more for the rest.
    """
    whole, _ = parameter_counts(cfg, rank)
    return max(training_bytes(cfg, rank, 2, 1, 1024, True, 2, processes), 1.2 * 2 * whole) / 1e9


def text():
    """The table: gigabytes of each GPU."""
    return table([{"model": name, "trained": "LoRA, rank 16" if rank else "all weights",
                   **{f"n{n}": gigabytes(cfg, rank, n) for n in GPUS}}
                  for name, cfg in MODELS.items() for rank in (0, 16)],
                 {"model": "{model}", "trained": "{trained}",
                  **{f"{n} GPU{'s' * (n > 1)}": f"{{n{n}:.0f}} GB" for n in GPUS}})


if __name__ == "__main__":
    print(text())
