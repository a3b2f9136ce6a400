from synapse_runtime.decorators import action


@action
def of_the_conftest(params, context):
    import socket

    return "conftest", socket.gethostname()
