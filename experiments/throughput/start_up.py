"""The least that a program on Ray with four learners has to do: start Ray, import torch in four actors, step once."""

import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray


@ray.remote(num_cpus=1)
class Learner:
    """Imports torch and steps once."""

    def step(self) -> float:
        """One optimizer step of a small network."""
        import torch

        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(10)
        )
        loss = torch.nn.functional.cross_entropy(net(torch.randn(32, 1, 8, 8)), torch.arange(32) % 10)
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.sub_(0.1 * parameter.grad)
        return float(loss)


if __name__ == "__main__":
    ray.init(address="local", num_cpus=5, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.get([learner.step.remote() for learner in [Learner.remote() for _ in range(4)]])
    print("stepped", flush=True)
    ray.shutdown()
