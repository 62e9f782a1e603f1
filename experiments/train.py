"""Train one of the paper's networks: standard (T = 1), temperature (T = 20 on hard labels, also the teacher), or
distilled (T = 20 on the teacher's soft labels; the teacher is trained first); or standard-distilled (T = 1 on the soft
labels of standard), which the paper has not.

Writes NAME.npz (weights), NAME.csv and NAME.png (loss, accuracy, time by epoch), train_NAME.json, and
NAME.checkpoint.npz after every epoch: the same command goes on from there, to the same bits. NAME is the network's,
with what is not the default of the data set: temperature-T5, standard-seed1. MNIST with 50 epochs is the paper's
protocol.
"""

from experiments import common
from minicnn.paper.networks import NETWORKS


def main(options):
    name, protocol = options.network, common.protocol(options)
    if options.temperature != common.TEMPERATURE and not NETWORKS[name].at_temperature:
        raise common.UsageError(f"--temperature has no influence on {name}, which is trained at T = 1: leave it out")
    if not protocol.teacher_dropout and not NETWORKS[name].teacher:
        raise common.UsageError(f"--teacher-dropout has no influence on {name}, which has no teacher: leave it out")
    dataset = common.load_data(options.dataset, options.validation)
    _, history = common.train(name, dataset, protocol, options.out)
    last, file, recipe = history[-1], options.out / protocol.file_name(name), protocol.recipe(name)
    common.write_json(options.json, common.environment(options) | {"recipe": vars(recipe), "history": history})
    picture = file.with_name(f"{file.name}.png")
    common.plot_history(picture, name, recipe.temperature, history)
    print(
        f"{name}: {last['test_accuracy']:.2%} of {len(dataset.test_labels)} test images after "
        f"{last['epoch']} epochs, {sum(row['seconds'] for row in history):.0f} s"
    )
    common.written(f"{file}.npz", f"{file}.csv", picture, options.json)


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    common.choice(parser, "--network", NETWORKS, "standard", "which network")
    common.training_arguments(parser)
    common.run(main, parser, lambda o: f"train_{common.protocol(o).file_name(o.network)}.json")
