"""VM-UNet, Synapse: 8 organs, in slices of 224x224.

The mean Dice is over the pixels of all slices and counts the background as a class, so it is none of the published
figures, which are means over volumes and organs; `medical/vm_unet_synapse8_18-12.py` has those.
"""

_base_ = ["../_base_/synapse_slices_224.py", "../_base_/network_20k.py"]
model = dict(network=dict(name="vm_unet", in_chans=3, num_classes=9))  # it repeats the grey slices
