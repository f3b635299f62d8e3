"""What a training takes of memory, and what to do where it does not suffice."""

from dataclasses import dataclass

from model.family import Family
from model.training.dataset import RowDataset
from model.training.options import Options


@dataclass
class Memory:
    """About what a process of the training takes, in GB."""

    weights: float
    states: float  # of the trained weights: gradients, and what AdamW keeps
    activations: float  # that a micro-batch keeps for its backward pass

    @property
    def total(self) -> float:
        return self.weights + self.states + self.activations

    def advice(self, options: Options) -> str:
        """Where it goes, and what takes how much of it away."""
        weights = f"weights {self.weights:.1f} GB"
        if options.method == "lora":
            weights += " (--method qlora: less than half)"
        states = f"gradients and AdamW's state {self.states:.1f} GB"
        if options.method == "full":
            states += " (--method lora: nearly none)"
        helps = []
        if options.batch_size > 1:
            half = options.batch_size // 2
            left = self.activations * half / options.batch_size
            helps.append(f"--batch-size {half}: {left:.1f}")
        if not options.checkpoint_activations:
            helps.append("--checkpoint-activations: a small part")
        activations = f"activations {self.activations:.1f} GB"
        if helps:
            activations += f" ({'; '.join(helps)})"
        return f"by the estimate {weights}, {states}, {activations}"


def estimated_memory(family: Family, dataset: RowDataset, batch_size: int) -> Memory:
    """Of a family that is ready to be trained on micro-batches of mean rows."""
    parameters = list(family.network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    tokens = float(dataset.lengths.mean()) * batch_size
    kept = family.activation_bytes(tokens, dataset.mean_targets * batch_size)
    return Memory(sum(p.nbytes for p in parameters) / 1e9, trained * 16 / 1e9, kept / 1e9)


def memory_problem(message: str) -> str:
    """What to do about a RuntimeError for want of memory; "" for any other."""
    if "DataLoader worker" in message:
        reason = message.partition(". ")[0].splitlines()[0]
        return (
            f"a process that reads images ended ({reason}): the memory may not suffice; lower "
            "--num-workers (0: none), --resume continues from the last saved step"
        )
    if "out of memory" in message or "can't allocate memory" in message:
        return (
            "the memory does not suffice; lower --batch-size (with more "
            "--gradient-accumulation-steps), or use --checkpoint-activations or --method qlora; "
            "--resume continues from the last saved step"
        )
    return ""
