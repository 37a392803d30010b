// Package model knows model files: what is in them, what may be carried, and
// how engines want to find them.
//
// Scan looks at a folder as Hugging Face publishes them, or at one GGUF or
// safetensors file, without running or trusting anything in it:
//
//	f, err := model.Scan("downloads/nemotron", model.Options{})
//	defer f.Close()
//	fmt.Println(f.Facts.Format, f.Facts.Params, f.Facts.Code)
//
// Import brings it into a store as a CNCF ModelPack artifact, one raw layer per
// file, and List, Open and Verify read it back:
//
//	m, err := model.Import(ctx, store, f, model.About{Name: "nemotron", Version: "1.0.0"})
//	err = model.Verify(ctx, store, m, nil)
//
// Link makes a folder of the model whose files are hard links to the store's
// blobs, so that an engine finds the names that it expects and no byte is
// copied; Consumers says, as a table, what vLLM and each of NIM's cache contracts
// want mounted and set, and Select chooses among profiles by the target's GPUs.
//
// What is checked. Headers of safetensors and GGUF are parsed in bounded memory
// and must account for every byte of their file; a shard index must agree with
// the shards. Pickles, which run code when they are loaded, are refused, by name
// and by content, unless Options.Pickles says otherwise. Code (*.py, libraries)
// and configuration that asks the engine to run it (auto_map,
// trust_remote_code) is hashed and listed, so that somebody can read it.
// Symbolic links must end inside the folder, or inside the same model's folder
// of a Hugging Face cache.
//
// Bytes are read once and written once: the store hashes while it writes. A
// source file is never hard-linked into the store, because whoever owns it could
// still write through the other name.
//
// Limits: a header that is well-formed may still describe a model that an
// engine can't run. Tensor values are not looked at.
package model
