// Package ollama pins the sources of the model engine; build.sh compiles them.
package ollama

// malgo carries miniaudio.h, which the module zip of ollama leaves out.
import _ "github.com/gen2brain/malgo"
